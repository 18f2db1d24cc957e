"""Downloads that go on where they were cut, for The Update Framework's client, which verifies what they bring.

    {folder}/{sha256}.part      what has come of a file whose name in the repository begins with its hash

Such a name never stands for other bytes, so the rest of a file may come on another day and from another server: no
validator of that server (If-Range) would say more. What was kept is believed as little as what comes: the whole is
hashed, and fetched once more from the beginning when the kept part was damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tuf.api.exceptions import DownloadError, DownloadHTTPError, DownloadLengthMismatchError, SlowRetrievalError
from tuf.ngclient.fetcher import FetcherInterface

from edge.web import PART_BYTES, Source
from lineside.clock import NS, Clock
from lineside.errors import ReleaseError
from lineside.targets import MAX_MODEL_BYTES

KEEP_FREE_BYTES = 64_000_000  # alarms come before updates
UNSATISFIABLE = 416  # HTTP: the range begins behind the end


@dataclass(frozen=True)
class Patience:
    """How long a file may take: `grace_s`, and its largest size at `bytes_per_s`, never more than `most_s`.

    What has come by then is kept, so that a line which is slower than that still gets there, at the next looks.
    """

    grace_s: float = 30.0
    bytes_per_s: float = 16_384.0
    most_s: float = 600.0

    def seconds(self, length: int) -> float:
        """For a file of at most `length` bytes.

        >>> Patience().seconds(16_384), Patience().seconds(1 << 28)
        (31.0, 600.0)
        """
        return min(self.most_s, self.grace_s + length / self.bytes_per_s)


class Fetcher(FetcherInterface):
    """Brings files from a `Source`; large ones with their hash in their name survive a cut in `folder`.

    All that lies there is at most MAX_MODEL_BYTES: the oldest gives way. Raises tuf's DownloadError, and ReleaseError
    (check `storage`) where the disk has no room.
    """

    def __init__(self, source: Source, folder: Path, clock: Clock, patience: Patience | None = None) -> None:
        self._source, self._folder, self._clock = source, folder, clock
        self._patience = patience or Patience()

    @contextlib.contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """A file of at most `max_length` bytes, open at its beginning; the caller verifies it."""
        sha256 = hash_in(url) if max_length > PART_BYTES else ""
        with self._kept(sha256, max_length) if sha256 else tempfile.TemporaryFile() as file:
            kept = file.seek(0, 2)
            self._fill(file, url, max_length)
            if kept and _sha256(file) != sha256:
                file.truncate(0)
                self._fill(file, url, max_length)
            file.seek(0)
            yield file

    def clear(self) -> None:
        """Forget what has come of files: none is to come any more. A power cut may bring back what was deleted."""
        for path in self._folder.glob("*.part"):
            path.unlink(missing_ok=True)

    def _fetch(self, url: str) -> Iterator[bytes]:
        return (data for _, data in self._source.parts(url))

    @contextlib.contextmanager
    def _kept(self, sha256: str, length: int) -> Iterator[IO[bytes]]:
        """The file of what has come, which stays only when the rest may still come."""
        path = self._folder / f"{sha256}.part"
        self._make_room(path, length)
        try:
            with path.open("a+b") as file:
                if file.seek(0, 2) > length:
                    file.truncate(0)
                yield file
        except DownloadError as error:
            if isinstance(error, DownloadLengthMismatchError):
                path.unlink()
            raise
        except Exception:
            path.unlink(missing_ok=True)
            raise
        path.unlink()

    def _make_room(self, path: Path, length: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        others = sorted((other for other in self._folder.glob("*.part") if other != path), key=_age)
        while others and sum(_size(other) for other in others) + length > MAX_MODEL_BYTES:
            others.pop(0).unlink()
        needed = 2 * length - _size(path) + KEEP_FREE_BYTES  # the verified copy lies beside it for a moment
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            told = f"{free / 1e6:.0f} MB are free, {needed / 1e6:.0f} MB are needed"
            mend = "free some space; the running encoder stays"
            raise ReleaseError("storage", str(self._folder), told, mend)

    def _fill(self, file: IO[bytes], url: str, length: int) -> None:
        """Append what is missing; begin again after a cut, for as long as each attempt brings something on."""
        until_ns = self._clock.now_ns() + round(self._patience.seconds(length) * NS)
        while True:
            begun = file.seek(0, 2)
            try:
                self._append(file, url, length, until_ns)
                return
            except (SlowRetrievalError, DownloadLengthMismatchError):
                raise
            except DownloadHTTPError as error:
                if error.status_code != UNSATISFIABLE or not begun:
                    raise
                file.truncate(0)
            except DownloadError:
                if file.seek(0, 2) - begun < PART_BYTES:
                    raise

    def _append(self, file: IO[bytes], url: str, length: int, until_ns: int) -> None:
        """One attempt. Nothing beyond `length` is written."""
        begun = at = file.seek(0, 2)
        if at == length and at:
            return
        with contextlib.closing(self._source.parts(url, begun)) as parts:
            for place, data in parts:
                if place != at:
                    if (place, at) != (0, begun):
                        raise DownloadError(f"{url}: bytes from {place} came in the place of those from {at}")
                    file.truncate(0)
                    at = 0
                at += len(data)
                if at > length:
                    raise DownloadLengthMismatchError(f"{url}: {at} bytes have come, {length} were signed at most")
                file.write(data)
                if self._clock.now_ns() > until_ns:
                    took = f"not whole within {self._patience.seconds(length):.1f} s"
                    raise SlowRetrievalError(f"{url}: {at} of at most {length} bytes, {took}")


def hash_in(url: str) -> str:
    """The SHA-256 that the name of a target of a consistent snapshot begins with (specification 6.2); empty for others.

    >>> hash_in("http://hub/targets/models/camera/" + 64 * "a" + ".camera-1.onnx") == 64 * "a"
    True
    >>> hash_in("http://hub/metadata/3.camera.json")
    ''
    """
    found = re.match(r"([0-9a-f]{64})\.", url.rpartition("/")[2])
    return found[1] if found else ""


def _sha256(file: IO[bytes]) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _age(path: Path) -> int:
    return path.stat().st_mtime_ns


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
