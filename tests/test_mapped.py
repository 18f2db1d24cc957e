"""Arrays that are read where they lie in a file: edge.mapped."""

from __future__ import annotations

import gc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.mapped import MappedArrays

ARRAYS: dict[str, Any] = {
    "mic0:windows": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "by columns": np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3)),
    "words": np.array(["camera", "音"]),
    "one": np.array(7, np.int64),
    "nothing": np.zeros((0, 3), np.float16),
    "odd": np.arange(3, dtype=np.uint8),  # what follows it is not aligned
    "after": np.arange(5, dtype=np.int64),
}


def written(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "kept.npz", **arrays)
    return folder / "kept.npz"


def test_arrays_are_those_of_the_file_and_cannot_be_changed(tmp_path: Path) -> None:
    found = MappedArrays(written(tmp_path, **ARRAYS))
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)
    with pytest.raises(ValueError, match="read-only"):
        found["odd"][0] = 1


def test_their_memory_is_given_back_and_they_are_still_there(tmp_path: Path) -> None:
    path = written(tmp_path, windows=np.random.default_rng(1).integers(0, 255, (64, 1_000_000), np.uint8))
    found = MappedArrays(path)
    total = int(found["windows"].sum())
    assert held_mb(path) > 60
    found.rest()
    assert held_mb(path) < 1
    assert int(found["windows"].sum()) == total


def held_mb(path: Path) -> float:
    """How much of a mapped file is in this process's memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    found = 0.0
    for line in lines:
        if line.endswith(str(path)):
            found += next(int(row.split()[1]) for row in lines if row.startswith("Rss:")) / 1024
    return found


def test_a_file_that_is_replaced_stays_what_it_was_to_who_has_it_open(tmp_path: Path) -> None:
    path = written(tmp_path, windows=np.zeros(1_000_000))
    found = MappedArrays(path)
    (tmp_path / "new").mkdir()
    written(tmp_path / "new", windows=np.ones(1_000_000)).replace(path)
    assert (found["windows"].max(), MappedArrays(path)["windows"].min()) == (0, 1)
    windows = found["windows"]
    del found
    gc.collect()
    assert windows.sum() == 0  # an array outlives the rest of its file


def test_what_is_damaged_compressed_or_holds_objects_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, **ARRAYS)
    whole = path.read_bytes()
    at = whole.index(ARRAYS["mic0:windows"].tobytes())
    path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    with pytest.raises(zipfile.BadZipFile, match=r"mic0:windows.npy is damaged"):
        MappedArrays(path)
    path.write_bytes(whole[:-30])
    with pytest.raises(zipfile.BadZipFile):
        MappedArrays(path)
    np.savez_compressed(path, **ARRAYS)
    with pytest.raises(ValueError, match="is compressed"):
        MappedArrays(path)
    with pytest.raises(ValueError, match=r"[Oo]bject|OBJECT"):
        MappedArrays(written(tmp_path, objects=np.array([{}], object)))
