"""A session whose process may die: it is told, and begun again beside the judging, never waited for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edge.encoder_process import EncoderProcess
from lineside.clock import NS, Clock
from lineside.errors import ReleaseError

log = logging.getLogger(__name__)
OPEN_S = 120.0  # CUDA begins slowly after a boot
ANSWER_S = 5.0  # for one batch; what a GPU takes is milliseconds
FIRST_WAIT_S, MOST_WAIT_S = 1.0, 60.0
SETTLED_S = 60.0  # a process that has answered for so long died of something new


class Worker:
    """Keeps a process of `begin` open and answers through it; several threads may ask.

    A request waits at most ANSWER_S for each `batch`. When the process is gone or hangs, requests raise ReleaseError
    (check `runtime`) at once until a new one answers. The first one is opened here, and raises when it cannot be.
    """

    def __init__(self, name: str, begin: Callable[[], EncoderProcess], clock: Clock) -> None:
        self._name, self._begin, self._clock = name, begin, clock
        self._lock = threading.Lock()
        self._wait_s, self._problem = FIRST_WAIT_S, ""
        self._due_ns = self._opened_ns = 0
        self._starting: threading.Thread | None = None
        self._process: EncoderProcess | None = self._open()

    @property
    def pid(self) -> int | None:
        """The process's number; None while there is none."""
        process = self._process
        return process.pid if process is not None else None

    def run(self, wanted: Sequence[str], fed: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """As onnxruntime's `run`, for any number of windows."""
        window = fed["window"]
        parts = []
        for at in range(0, max(1, len(window)), self.batch):
            with self._lock:  # taken for each batch, so that a long request lets others in
                parts.append(self._asked(wanted, window[at : at + self.batch]))
        return [np.concatenate(each) for each in zip(*parts, strict=True)]

    def _asked(self, wanted: Sequence[str], window: NDArray[np.generic]) -> list[NDArray[np.generic]]:
        process = self._process
        if process is None:
            self._begin_again()
            raise self._away()
        try:
            return process.run(wanted, window, ANSWER_S)
        except ReleaseError as error:
            process.end()  # also one that lives and says why: an error of a GPU stays until its process ends
            self._lost(error)
            raise self._away() from error

    def _lost(self, error: ReleaseError) -> None:
        log.error("%s", error)
        now = self._clock.now_ns()
        if now - self._opened_ns > SETTLED_S * NS:
            self._wait_s = FIRST_WAIT_S
        self._process, self._problem = None, error.told
        self._due_ns = now + round(self._wait_s * NS)
        self._wait_s = min(MOST_WAIT_S, 2 * self._wait_s)

    def _begin_again(self) -> None:
        if self._clock.now_ns() >= self._due_ns and self._starting is None:
            self._starting = threading.Thread(target=self._start, name=f"opening {self._name}", daemon=True)
            self._starting.start()

    def _start(self) -> None:
        try:
            process = self._open()
        except ReleaseError as error:
            with self._lock:
                self._lost(error)
                self._starting = None
            return
        with self._lock:
            self._process, self._starting = process, None
        log.warning("%s answers again", self._name)

    def _open(self) -> EncoderProcess:
        process = self._begin()
        ready = process.open(OPEN_S)
        self.provider, self.batch = ready.provider, ready.batch
        self._opened_ns = self._clock.now_ns()
        return process

    def _away(self) -> ReleaseError:
        return ReleaseError("runtime", self._name, self._problem, "it is begun again by itself")
