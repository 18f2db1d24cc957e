"""Keeps sensors open: one thread each, and one bounded queue that counts what it must drop."""

from __future__ import annotations

import logging
import queue
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from edge.sensors.base import Sensor
from lineside.errors import SensorError
from lineside.windows import Samples

log = logging.getLogger(__name__)
BACKOFF_S = (0.5, 2.0)  # plugged in again, a sensor is to be back within five seconds


@dataclass
class Capture:
    """Keeps one sensor open: opens it anew, with jittered back-off, whenever it is missing or stops.

    `problem` is the last SensorError in words, empty while samples come; `restarts` counts how often it was opened
    anew. A finite source that is at its end sets `ended`.
    """

    name: str
    make: Callable[[], Sensor]
    out: queue.Queue[Samples]
    problem: str = ""
    restarts: int = 0
    ended: bool = False
    _overflowed: int = 0
    _dropped_before: int = 0
    _sensor: Sensor | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """Samples lost on their way, at the queue or before it."""
        sensor = self._sensor  # another thread's
        return self._overflowed + self._dropped_before + (sensor.dropped if sensor else 0)

    def start(self) -> None:
        """Begin to read, in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name=f"capture-{self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the sensor and wait for the thread, a few seconds at most."""
        self._stop.set()
        if self._sensor is not None:
            self._sensor.close()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        wait_s = BACKOFF_S[0]
        while not self._stop.is_set():
            try:
                self._sensor = self.make()
                for samples in self._sensor.samples():
                    self.problem, wait_s = "", BACKOFF_S[0]
                    self._put(samples)
                    if self._stop.is_set():
                        return
                self.ended = True
                return
            except SensorError as error:
                if str(error) != self.problem:
                    log.warning("%s", error)
                self.problem = str(error)
            if self._sensor is not None:
                self._dropped_before, self._sensor = self._dropped_before + self._sensor.dropped, None
            self._stop.wait(wait_s * random.uniform(0.7, 1.3))
            wait_s = min(wait_s * 2, BACKOFF_S[1])
            self.restarts += 1

    def _put(self, samples: Samples) -> None:
        try:
            self.out.put_nowait(samples)
        except queue.Full:
            self._overflowed += len(samples.data)
