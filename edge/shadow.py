"""A second ensemble that judges the moments of the one in use, in a thread of its own: nobody waits for it."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.comparison import Comparison
from edge.ensemble import Ensemble
from lineside.errors import ReleaseError
from lineside.fusion import Encoded, Judgement

log = logging.getLogger(__name__)
QUEUE_MOMENTS = 8  # some 4 s at the usual hop; a device that is slower than that drops moments, and counts them


class Judged(NamedTuple):
    """A moment as the ensemble in use saw it: encoder inputs of the sensors that were well, and what came of them."""

    good: Mapping[str, NDArray[np.generic]]
    encoded: Mapping[str, Encoded]
    judgement: Judgement
    state: str


class Shadow:
    """`ensemble` beside the one in use, of which only encoders of `comparison.changed` modalities differ.

    With `older` it is the one that was in use before. What it judges changes nothing but `comparison`; `senseless`
    counts the moments that it made no sense of, `dropped` those that it was too slow for.
    """

    def __init__(self, ensemble: Ensemble, comparison: Comparison, older: bool) -> None:
        self.comparison, self.older = comparison, older
        self.dropped = self.senseless = 0
        self._ensemble = ensemble
        self._moments: queue.Queue[Judged | None] = queue.Queue(QUEUE_MOMENTS)
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def take(self, judged: Judged) -> None:
        """Judge this moment when there is time; returns at once."""
        try:
            self._moments.put_nowait(judged)
        except queue.Full:
            self.dropped += 1

    @property
    def behind(self) -> int:
        """Moments that wait to be judged."""
        return self._moments.qsize()

    def stop(self) -> None:
        """Judge no more. Waits for the moment that is being judged, so that the encoders are free afterwards."""
        while True:
            try:
                self._moments.put_nowait(None)
                break
            except queue.Full:
                self._drop()
        self._thread.join(timeout=10)

    def _drop(self) -> None:
        with contextlib.suppress(queue.Empty):
            self._moments.get_nowait()

    def _run(self) -> None:
        while (judged := self._moments.get()) is not None:
            try:
                self._judge(judged)
            except ReleaseError as error:
                self.senseless += 1
                log.warning("%s", error)

    def _judge(self, judged: Judged) -> None:
        modalities, changed = self.comparison.modalities, self.comparison.changed
        anew = {name: (modalities[name], x) for name, x in judged.good.items() if modalities[name] in changed}
        encoded = {**judged.encoded, **self._ensemble.encode(anew)}
        if not all(np.isfinite(one.embedding).all() and np.isfinite(one.features).all() for one in encoded.values()):
            self.senseless += 1
            return
        found = self._ensemble.judge(encoded, judged.state)
        if found is not None:
            both = (found, judged.judgement) if self.older else (judged.judgement, found)
            self.comparison.hear(*both)
