"""What may be on a disk after a power cut: changes, and which of their effects may be missing.

The rules are those that POSIX leaves to a file system, as ALICE (Pillai et al., OSDI 2014) and CrashMonkey (Mohan et
al., OSDI 2018) turn them into states to test: what was written to a file counts from its fsync on, a name in a folder
from the folder's fsync on. Before, the data may be there, missing, cut, zeros of the right length, or there only in
parts (pages are written in any order), and each name may be there or not, whatever was asked for first. Left to the
file system: a rename happens whole or not at all, and what was durable stays.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from tests.powercut.tree import NOT_FILES, Entry, Tree

Data = Literal["kept", "lost", "cut", "zeros", "torn"]
DATA: tuple[Data, ...] = ("kept", "lost", "cut", "zeros", "torn")
ALL_SUBSETS = 4  # of so many names that are not durable every subset is tried, of more the telling ones
ROOT = 0
Place = tuple[int, str]  # a folder's node, and a name in it
Written = tuple[int, bytes | None]  # where and what; or a length, and None where the file was set to it


@dataclass
class Node:
    """A file, folder or link, whatever its names are; `pending` was written since it held `durable` for sure."""

    kind: Literal["file", "folder", "link"]
    link: str = ""
    mode: int = 0o644
    durable: bytes = b""
    pending: list[Written] = field(default_factory=list)

    def data(self, how: Data = "kept") -> bytes:
        """What it holds after a cut."""
        written: Mapping[Data, Iterable[Written]] = {
            "kept": self.pending,
            "lost": [],
            "cut": _half(self.pending),
            "zeros": [(at, data and bytes(len(data))) for at, data in self.pending],
            "torn": self.pending[1::2],
        }
        return _apply(self.durable, written[how])

    def sync(self) -> None:
        """All of it is on disk."""
        self.durable, self.pending = self.data(), []


@dataclass
class Naming:
    """One change of names, which happens whole or not: each place, and the node that has it from then on."""

    names: dict[Place, int | None]
    durable: bool = False


class Disk:
    """A folder and what is done in it. Nodes are known by number; ROOT is the folder itself."""

    def __init__(self, before: Tree) -> None:
        self.nodes: list[Node] = [Node("folder")]
        self._begun: dict[Place, int] = {}
        self._namings: list[Naming] = []
        at = {"": ROOT}
        for path, entry in sorted(before.items()):
            folder, _, name = path.rpartition("/")
            self.nodes.append(_node(entry))
            at[path] = self._begun[at[folder], name] = len(self.nodes) - 1

    def find(self, place: Place) -> int | None:
        """The node at a place."""
        if place[1] == ".":
            return place[0]
        found: int | None = self._begun.get(place)
        for naming in self._namings:
            found = naming.names.get(place, found)
        return found

    def make(self, node: Node, place: Place) -> int:
        """A new node there; its number."""
        self.nodes.append(node)
        self.name({place: len(self.nodes) - 1})
        return len(self.nodes) - 1

    def name(self, names: dict[Place, int | None]) -> None:
        """Change names, in one step."""
        self._namings.append(Naming(names))

    def sync(self, number: int) -> None:
        """A file's data, or a folder's names, are on disk from now on."""
        self.nodes[number].sync()
        for naming in self._namings:
            naming.durable |= any(folder == number for folder, _ in naming.names)

    def tree(self) -> Tree:
        """What is there while the power is on, and after a kill."""
        return self._tree(self._namings, {})

    def trees(self) -> Iterator[Tree]:
        """What may be there after a power cut now."""
        loose = [i for i, naming in enumerate(self._namings) if not naming.durable]
        files = [i for i, node in enumerate(self.nodes) if node.pending]
        modes: list[dict[int, Data]] = [dict.fromkeys(files, how) for how in (DATA if files else DATA[:1])]
        modes += [{one: "lost"} for one in files if len(files) > 1]
        for kept in subsets(loose):
            gone = {*loose} - {*kept}
            namings = [naming for i, naming in enumerate(self._namings) if i not in gone]
            for mode in modes:
                yield self._tree(namings, mode)

    def _tree(self, namings: Iterable[Naming], how: Mapping[int, Data]) -> Tree:
        names: dict[Place, int | None] = dict(self._begun)
        for naming in namings:
            names.update(naming.names)
        inside: dict[int, list[tuple[str, int]]] = {}
        for (folder, name), number in names.items():
            if number is not None and not name.endswith(NOT_FILES):
                inside.setdefault(folder, []).append((name, number))
        found: Tree = {}
        waiting = [(ROOT, "")]
        while waiting:
            folder, before = waiting.pop()
            for name, number in inside.get(folder, []):
                found[before + name] = self._entry(number, how.get(number, "kept"))
                if self.nodes[number].kind == "folder":
                    waiting.append((number, f"{before}{name}/"))
        return found

    def _entry(self, number: int, how: Data) -> Entry:
        node = self.nodes[number]
        if node.kind == "file":
            return Entry(node.data(how), mode=node.mode)
        return Entry(link=node.link)


def subsets(loose: list[int]) -> Iterator[tuple[int, ...]]:
    """Which of the names that are not durable may be there: every choice of few; of many all, none, the first so many,
    all but one, and one alone.

    >>> sorted(subsets([1, 2]))
    [(), (1,), (1, 2), (2,)]
    """
    if len(loose) <= ALL_SUBSETS:
        for many in range(len(loose) + 1):
            yield from itertools.combinations(loose, many)
        return
    for end in range(len(loose) + 1):
        yield tuple(loose[:end])
    for one in loose:
        yield (one,)
        yield tuple(other for other in loose if other != one)


def _node(entry: Entry) -> Node:
    if entry.data is not None:
        return Node("file", mode=entry.mode, durable=entry.data)
    return Node("link", link=entry.link) if entry.link else Node("folder")


def _apply(data: bytes, written: Iterable[Written]) -> bytes:
    made = bytearray(data)
    for at, what in written:
        end = at if what is None else at + len(what)
        made += bytes(max(0, end - len(made)))
        if what is None:
            del made[at:]
        else:
            made[at:end] = what
    return bytes(made)


def _half(written: list[Written]) -> Iterator[Written]:
    """The writes up to half of their bytes."""
    left = sum(len(data) for _, data in written if data) // 2
    for at, data in written:
        yield at, data if data is None else data[:left]
        left -= len(data or b"")
        if left <= 0:
            return
