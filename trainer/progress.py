"""Progress of long work: a bar on stderr for a person, nothing for a script."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress


class Progress(Protocol):
    """Is told how far `what` has come; `total` is 0 while it is not known."""

    def __call__(self, what: str, done: int, total: int = 0) -> None: ...


def silent(what: str, done: int, total: int = 0) -> None:
    """Progress that nobody watches."""


def unheard(warning: str) -> None:
    """A warning that nobody hears now; it stands in stage.json."""


class Bar:
    """Progress bars on stderr, one a piece of work, as a context manager."""

    def __init__(self) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self._bars = RichProgress(*columns, console=Console(stderr=True))
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bar:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, what: str, done: int, total: int = 0) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=None)
        self._bars.update(self._tasks[what], completed=done, total=total or None)
