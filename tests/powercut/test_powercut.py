"""A few kills and power cuts of every row of the table; `make powercut` does all of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lineside.files import sync_folder, write_atomic
from tests.powercut.calls import Follower
from tests.powercut.rows import ROWS
from tests.powercut.strike import strike
from tests.powercut.table import Row
from tests.powercut.trace import Unavailable, need_strace, record

pytestmark = pytest.mark.slow

FEW = 3
SLOW = {
    "first start of a device",
    "publication of the version before",
    "rollout of two modalities",
    "update of one modality",
}


@pytest.fixture(autouse=True)
def strace() -> None:
    try:
        need_strace()
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=pytest.mark.slow if row.name in SLOW else ()) for row in ROWS],
    ids=[row.name for row in ROWS],
)
def test_the_old_or_the_new_is_found(row: Row, tmp_path: Path) -> None:
    found = strike(row, tmp_path, FEW)
    assert found.broken == []
    assert found.killed.count >= FEW
    assert found.lost.count >= FEW
    assert min(found.killed.old + found.lost.old, found.killed.new + found.lost.new) > 0


def write_in_place(path: Path) -> None:
    path.write_bytes(b"new")


def rename_without_fsync(path: Path) -> None:
    (path.parent / "other").write_bytes(b"new")
    (path.parent / "other").rename(path)


def fsync_without_the_folder(path: Path) -> None:
    with (path.parent / "other").open("wb") as file:
        file.write(b"new")
        file.flush()
        os.fsync(file.fileno())
    (path.parent / "other").rename(path)


def remove_first(path: Path) -> None:
    path.unlink()
    sync_folder(path.parent)
    write_atomic(path, b"new")


def as_it_should_be(path: Path) -> None:
    write_atomic(path, b"new")


@pytest.mark.parametrize(
    ("write", "during", "after"),
    [
        (write_in_place, {b"old", b"", b"n", b"\0\0\0", b"new"}, {b"old", b"n", b"\0\0\0", b"new"}),
        (rename_without_fsync, {b"old", b"", b"n", b"\0\0\0", b"new"}, {b"old", b"", b"n", b"\0\0\0", b"new"}),
        (fsync_without_the_folder, {b"old", b"new"}, {b"old", b"new"}),
        (remove_first, {b"old", None, b"new"}, {b"new"}),
        (as_it_should_be, {b"old", b"new"}, {b"new"}),
    ],
)
def test_what_a_cut_may_leave_of_a_file(
    write: Callable[[Path], None], during: set[bytes | None], after: set[bytes | None], tmp_path: Path
) -> None:
    """The model finds what is wrong with each way to replace a file, and nothing wrong with ours."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"old")
    model = Follower(folder, folder)
    found = set()
    for call in record(lambda: write(folder / "file"), tmp_path / "log"):
        model.take(call)
        last = {tree["file"].data if "file" in tree else None for tree in model.disk.trees()}
        found |= last
    assert found == during
    assert last == after
