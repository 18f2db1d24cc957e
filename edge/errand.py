"""Work that takes its time, in a thread of its own, so that whoever began it can go on and look now and then."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Errand(Generic[T]):
    """One piece of work, begun at once. The thread ends with it, or with the process."""

    def __init__(self, name: str, work: Callable[[], T]) -> None:
        self.name, self._work = name, work
        self._made: list[T] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has come to its end."""
        return not self._thread.is_alive()

    def result(self) -> T:
        """What it made, once it is done. Raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._made[0]

    def _run(self) -> None:
        try:
            self._made.append(self._work())
        except Exception as error:  # noqa: BLE001 the top of a thread: whoever asks for the result gets it
            self._error = error
