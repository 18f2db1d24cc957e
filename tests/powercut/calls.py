"""What each system call of a trace does to the disk: from strace's arguments to tests.powercut.disk."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.powercut.disk import ROOT, Disk, Node, Place
from tests.powercut.table import said_in
from tests.powercut.trace import Call, unescaped
from tests.powercut.tree import read

HERE = "AT_FDCWD"
UNKNOWN = ("copy_file_range", "sendfile", "sync", "syncfs", "truncate", "fchmodat")


@dataclass
class Open:
    """An open file or folder: its node, where the next write goes, and whether that is always the end."""

    node: int
    at: int = 0
    append: bool = False


class Follower:
    """A folder that was as `before`, and what a trace does to it at `root`. `said` is what was promised by now."""

    def __init__(self, before: Path, root: Path) -> None:
        self.disk = Disk(read(before))
        self.said: list[str] = []
        self._root, self._said_at = os.path.realpath(root), os.path.realpath(said_in(root))
        self._open: dict[int, Open] = {}
        self._tellers: set[int] = set()

    def take(self, call: Call) -> bool:
        """Do what a call did; whether it changes something here, or makes it durable."""
        if call.result < 0:
            return False
        if call.name in UNKNOWN:
            assert not any(self._handle(one) for one in call.arguments), f"{call.name} is not modelled"
            return False
        return CALLS[call.name](self, call) if call.name in CALLS else False

    def open(self, call: Call) -> bool:
        place, flags = self._place(call.arguments[0], call.text(1)), call.arguments[2]
        if place is None:
            if call.text(1).decode() == self._said_at:
                self._tellers.add(call.result)
            return False
        node, changed = self.disk.find(place), False
        if node is None:
            assert "O_CREAT" in flags, f"{call.text(1)!r} is not known here"
            node, changed = self.disk.make(Node("file", mode=int(call.arguments[3], 8) & ~UMASK), place), True
        elif "O_TRUNC" in flags and self.disk.nodes[node].data():
            self.disk.nodes[node].pending.append((0, None))
            changed = True
        self._open[call.result] = Open(node, append="O_APPEND" in flags)
        return changed

    def close(self, call: Call) -> bool:
        self._open.pop(int(call.arguments[0]), None)
        self._tellers.discard(int(call.arguments[0]))
        return False

    def duplicate(self, call: Call) -> bool:
        if opened := self._handle(call.arguments[0]):
            self._open[call.result] = opened
        return False

    def control(self, call: Call) -> bool:
        return self.duplicate(call) if call.arguments[1].startswith("F_DUPFD") else False

    def seek(self, call: Call) -> bool:
        if opened := self._handle(call.arguments[0]):
            opened.at = call.result
        return False

    def write(self, call: Call) -> bool:
        data = b"".join(unescaped(found) for found in re.findall(r'"[^"]*"', call.arguments[1]))[: call.result]
        if int(call.arguments[0]) in self._tellers:
            self.said += data.decode().splitlines()
        if (opened := self._handle(call.arguments[0])) is None:
            return False
        node = self.disk.nodes[opened.node]
        if call.name.startswith("p"):
            at = int(call.arguments[3])
        else:
            at = len(node.data()) if opened.append else opened.at
            opened.at = at + len(data)
        node.pending.append((at, data))
        return True

    def set_length(self, call: Call) -> bool:
        if opened := self._handle(call.arguments[0]):
            self.disk.nodes[opened.node].pending.append((int(call.arguments[1]), None))
        return opened is not None

    def allocate(self, call: Call) -> bool:
        if opened := self._handle(call.arguments[0]):
            assert call.arguments[1] == "0", "fallocate with a mode is not modelled"
            node, end = self.disk.nodes[opened.node], int(call.arguments[2]) + int(call.arguments[3])
            node.pending.append((max(end, len(node.data())), None))
        return opened is not None

    def sync(self, call: Call) -> bool:
        if opened := self._handle(call.arguments[0]):
            self.disk.sync(opened.node)
        return opened is not None

    def mode(self, call: Call) -> bool:
        if opened := self._handle(call.arguments[0]):
            node: int | None = opened.node
        else:
            place = self._place(HERE, call.text(0)) if call.name == "chmod" else None
            node = None if place is None else self.disk.find(place)
        if node is not None:
            self.disk.nodes[node].mode = int(call.arguments[1], 8)
        return node is not None

    def move(self, call: Call) -> bool:
        (source, old), (target, new) = _two_paths(call)
        before, after = self._place(source, old), self._place(target, new)
        assert (before is None) == (after is None), f"{old!r} is moved in or out"
        if before is None or after is None:
            return False
        self.disk.name({before: None, after: self.disk.find(before)})
        return True

    def link(self, call: Call) -> bool:
        (source, old), (target, new) = _two_paths(call)
        before, after = self._place(source, old), self._place(target, new)
        if before is not None and after is not None:
            self.disk.name({after: self.disk.find(before)})
        return after is not None

    def drop(self, call: Call) -> bool:
        place = self._place(*_path(call, call.name == "unlinkat"))
        if place is not None:
            self.disk.name({place: None})
        return place is not None

    def make_folder(self, call: Call) -> bool:
        return self._make(Node("folder"), *_path(call, call.name == "mkdirat"))

    def make_link(self, call: Call) -> bool:
        at = call.name == "symlinkat"
        where = (call.arguments[1], call.text(2)) if at else (HERE, call.text(1))
        return self._make(Node("link", link=call.text(0).decode()), *where)

    def _make(self, node: Node, folder: str, name: bytes) -> bool:
        place = self._place(folder, name)
        if place is not None:
            self.disk.make(node, place)
        return place is not None

    def _handle(self, argument: str) -> Open | None:
        return self._open.get(int(argument)) if argument.isdigit() else None

    def _place(self, folder: str, name: bytes) -> Place | None:
        """What a path stands for, None where it is not in here (`.` for the folder itself)."""
        if (opened := self._handle(folder)) is not None and not name.startswith(b"/"):
            parts, at = name.decode().split("/"), opened.node
        else:
            path = os.path.normpath(os.path.join(os.getcwd(), name.decode()))
            if path != self._root and not path.startswith(f"{self._root}/"):
                return None
            parts, at = [part for part in path[len(self._root) :].split("/") if part] or ["."], ROOT
        for part in parts[:-1]:
            at = self._inside(at, part)
        return at, parts[-1]

    def _inside(self, folder: int, name: str) -> int:
        found = self.disk.find((folder, name))
        if found is not None and self.disk.nodes[found].kind == "link":
            found = self.disk.find((folder, self.disk.nodes[found].link))  # to its neighbour: all that we have
        assert found is not None, f"{name!r} leads nowhere"
        return found


def _path(call: Call, at: bool) -> tuple[str, bytes]:
    return (call.arguments[0], call.text(1)) if at else (HERE, call.text(0))


def _two_paths(call: Call) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    if call.name in ("rename", "link"):
        return (HERE, call.text(0)), (HERE, call.text(1))
    return (call.arguments[0], call.text(1)), (call.arguments[2], call.text(3))


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


UMASK = _umask()
CALLS: dict[str, Callable[[Follower, Call], bool]] = {
    "openat": Follower.open,
    "close": Follower.close,
    **dict.fromkeys(("dup", "dup2", "dup3"), Follower.duplicate),
    "fcntl": Follower.control,
    "lseek": Follower.seek,
    **dict.fromkeys(("write", "pwrite64", "writev", "pwritev", "pwritev2"), Follower.write),
    "ftruncate": Follower.set_length,
    "fallocate": Follower.allocate,
    **dict.fromkeys(("fsync", "fdatasync"), Follower.sync),
    **dict.fromkeys(("chmod", "fchmod"), Follower.mode),
    **dict.fromkeys(("rename", "renameat", "renameat2"), Follower.move),
    **dict.fromkeys(("link", "linkat"), Follower.link),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), Follower.drop),
    **dict.fromkeys(("mkdir", "mkdirat"), Follower.make_folder),
    **dict.fromkeys(("symlink", "symlinkat"), Follower.make_link),
}
