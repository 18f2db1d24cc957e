"""Files that are replaced: whole, with one temporary name each, whoever writes at the same time."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lineside.files import write_atomic


def test_what_a_power_cut_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".state.new").write_bytes(b"left behind " * 1000)
    write_atomic(tmp_path / "state", b"new", mode=0o600)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert (tmp_path / "state").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o600


def test_writers_of_the_same_file_wait_for_each_other(tmp_path: Path) -> None:
    texts = [bytes([65 + i]) * (1 + 4000 * i) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda i: write_atomic(tmp_path / "deep" / "state", texts[i % 8]), range(200)):
            assert (tmp_path / "deep" / "state").read_bytes() in texts
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["state"]


def test_a_write_that_fails_leaves_the_old_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()  # a file cannot take the name of a folder
    with pytest.raises(OSError):
        write_atomic(tmp_path / "state", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
