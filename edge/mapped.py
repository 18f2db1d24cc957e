"""Arrays of an npz file, read where they lie: they take memory while somebody looks at them, and no longer.

The file must be replaced as a whole (lineside.files.write_atomic), never written into: what is mapped is what stood
there when it was opened.
"""

from __future__ import annotations

import ctypes
import io
import math
import mmap
import struct
import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

NAMES_AT, HEADER_BYTES = 26, 30  # of a local file header: APPNOTE.TXT 4.3.7
NPY_HEADER_MAX = 10_000


class MappedArrays(dict[str, NDArray[np.generic]]):
    """The arrays by name, read-only; `rest` gives their memory back until they are looked at again.

    Raises OSError, ValueError or zipfile.BadZipFile when the file is damaged, compressed or holds objects.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{damaged} is damaged")
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            for member in archive.infolist():
                self[member.filename.removesuffix(".npy")] = self._array(member)

    def rest(self) -> None:
        """Give back what was read; and what came and went meanwhile, which glibc would keep for the next time."""
        self._memory.madvise(mmap.MADV_DONTNEED)
        if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
            trim(0)

    def _array(self, member: zipfile.ZipInfo) -> NDArray[np.generic]:
        """One .npy member (NEP 1), where it lies."""
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{member.filename} is compressed")
        name, extra = struct.unpack_from("<HH", self._memory, member.header_offset + NAMES_AT)
        start = member.header_offset + HEADER_BYTES + name + extra
        head = io.BytesIO(self._memory[start : start + NPY_HEADER_MAX])
        read = npy.read_array_header_1_0 if npy.read_magic(head) == (1, 0) else npy.read_array_header_2_0
        shape, by_columns, dtype = read(head)
        if not math.prod(shape):
            return np.zeros(shape, dtype)
        found = np.frombuffer(self._memory, dtype, math.prod(shape), start + head.tell())
        return found.reshape(shape, order="F" if by_columns else "C")
