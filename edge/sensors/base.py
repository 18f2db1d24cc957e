"""The port behind which every source of samples stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from lineside.windows import Samples


class Sensor(Protocol):
    """One source of samples of one sensor.

    `samples` opens the source and yields runs of samples in capture order, waiting where the source is real time;
    it ends only when a finite source is at its end. Raises SensorError when the source is missing or stops giving.
    `close` may be called from another thread and makes a waiting `samples` end soon. `dropped` counts the samples that
    were lost before `samples` gave them, because its reader was too far behind.
    """

    @property
    def dropped(self) -> int: ...

    def samples(self) -> Iterator[Samples]: ...

    def close(self) -> None: ...
