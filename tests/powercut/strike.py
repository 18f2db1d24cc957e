"""Cut a piece of work everywhere, start again each time, and count what was found."""

from __future__ import annotations

import itertools
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.powercut import tree
from tests.powercut.calls import Follower
from tests.powercut.child import in_child
from tests.powercut.table import NEW, OLD, Found, Row, Scene, Tally, said_in
from tests.powercut.trace import Call, kill, need_strace, record
from tests.powercut.tree import Tree

T = TypeVar("T")
# What lineside.files.write_atomic leaves when it is cut: one for each file at most, which its next write overwrites.
SPARE = re.compile(r"\..+\.new")


@dataclass(frozen=True)
class Cut:
    """The power goes after the call that `where` tells: one state that may be found then, and what was said by then."""

    where: str
    found: Tree
    said: list[str]


def strike(row: Row, folder: Path, most: int = sys.maxsize, tell: Callable[[str], None] = lambda _: None) -> Found:
    """Do the row: kill its work at every call and cut the power after every call, or `most` of each, evenly spread.

    Raises Unavailable where work cannot be traced.
    """
    need_strace()
    (folder / "scene").mkdir(parents=True)
    with row.scene(folder / "scene") as scene:
        return _Striker(scene, folder, most, lambda told: tell(f"{row.name}: {told}")).strike()


class _Striker:
    def __init__(self, scene: Scene, folder: Path, most: int, tell: Callable[[str], None]) -> None:
        self._scene, self._folder, self._most, self._tell = scene, folder, most, tell
        self._found, self._number = Found(), itertools.count()
        self._clean: dict[str, int | str] = {}

    def strike(self) -> Found:
        place = self._copy()
        calls = record(lambda: self._scene.act(place), self._log)
        verdict, self._clean = self._after(place)
        assert verdict == NEW, f"without any cut: {verdict}"
        points, cuts = self._walk(calls, Follower(self._scene.base, place))
        for i, (call, expected) in enumerate(chosen := spread(points, self._most)):
            self._tell(f"kill {i + 1} of {len(chosen)}")
            self._kill(call, expected)
        self._heap([call for call, _ in chosen])
        for i, cut in enumerate(chosen_cuts := spread(cuts, self._most)):
            self._tell(f"power cut {i + 1} of {len(chosen_cuts)}")
            self._cut(cut)
        return self._found

    @property
    def _log(self) -> Path:
        return self._folder / "strace.log"

    def _walk(self, calls: Sequence[Call], model: Follower) -> tuple[list[tuple[Call, Tree]], list[Cut]]:
        """Every call that changes something here with what lies there before it; every state that a cut may leave."""
        points, seen = [], set[bytes]()
        cuts = list(self._states(model, "nothing", seen))
        for call in calls:
            before = model.disk.tree()
            if model.take(call):
                points.append((call, before))
                cuts += self._states(model, f"{call.name} #{call.number}", seen)
        return points, cuts

    def _states(self, model: Follower, where: str, seen: set[bytes]) -> Iterator[Cut]:
        for found in model.disk.trees():
            if (known := tree.fingerprint(found, model.said)) not in seen:
                seen.add(known)
                yield Cut(f"after {where}", found, list(model.said))

    def _kill(self, call: Call, expected: Tree) -> None:
        place, where = self._copy(), f"killed at {call.name} #{call.number}"
        assert kill(lambda: self._scene.act(place), call, self._log), f"not {where}"
        there, wanted = tree.look(place), tree.outline(expected)
        assert there == wanted, f"{where}: {there.items() ^ wanted.items()}, which the model does not know"
        self._judge(place, self._found.killed, where)

    def _cut(self, cut: Cut) -> None:
        place = self._folder / f"{next(self._number)}"
        tree.write(cut.found, place)
        said_in(place).write_text("".join(f"{line}\n" for line in cut.said))
        self._judge(place, self._found.lost, cut.where)

    def _judge(self, place: Path, tally: Tally, where: str) -> None:
        verdict, files = self._after(place)
        tally.add(verdict, where)
        self._found.left = max(self._found.left, left_over(files, self._clean))
        strays = [path for path in files if path not in self._clean and not SPARE.fullmatch(Path(path).name)]
        self._found.strays += [f"{where}: {path} stays behind" for path in strays]

    def _after(self, place: Path) -> tuple[str, dict[str, int | str]]:
        """What a restart finds, and what lies there when the next run is through; the folder is removed."""
        verdict = in_child(lambda: self._verdict(place))
        files = tree.look(place)
        shutil.rmtree(place)
        said_in(place).unlink(missing_ok=True)
        return verdict, files

    def _verdict(self, place: Path) -> str:
        said = said_in(place).read_text().splitlines() if said_in(place).exists() else []
        verdict = self._scene.judge(place, said)
        assert verdict in (OLD, NEW), verdict
        self._scene.again(place)
        return verdict

    def _heap(self, calls: Sequence[Call]) -> None:
        """Kill the work again and again in the same folder: what is left behind must not grow without bound."""
        place = self._copy()
        for call in calls:
            kill(lambda: self._scene.act(place), call, self._log)
            self._found.heaped = max(self._found.heaped, left_over(tree.look(place), self._clean))
        self._judge(place, Tally(), "heap")

    def _copy(self) -> Path:
        place = self._folder / f"{next(self._number)}"
        shutil.copytree(self._scene.base, place, symlinks=True)
        return place


def spread(items: Sequence[T], most: int) -> Sequence[T]:
    """At most so many of them, evenly spread, the first and the last with them.

    >>> spread([1, 2, 3, 4, 5], 3)
    [1, 3, 5]
    """
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def left_over(files: dict[str, int | str], clean: dict[str, int | str]) -> int:
    """Bytes in files that are not there without a cut."""
    return sum(size for path, size in files.items() if path not in clean and isinstance(size, int) and size > 0)
