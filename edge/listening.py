"""All sensors of a device listened to at once for a few seconds: what they really give, and how far apart."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge.config import SensorSettings, WindowSettings
from edge.sensors.base import Sensor
from edge.sensors.table import open_sensor
from lineside.clock import NS, Clock
from lineside.errors import SensorError
from lineside.quality import Quality
from lineside.windows import Cutter, Samples, Window

WANTED = 2  # windows: the last flag is of the second
STEP_S = 0.1


@dataclass
class Heard:
    """What one sensor gave: `problem` tells why it gave nothing; `rate_hz` is that of the samples that came."""

    sensor: SensorSettings
    windows: list[Window] = field(default_factory=list)
    flags: frozenset[str] = frozenset()
    problem: SensorError | None = None
    first_ns: int = 0
    last_ns: int = 0
    count: int = 0

    @property
    def rate_hz(self) -> float:
        """Samples a second by the clock, those of the first run not counted; 0 for fewer than two runs."""
        return self.count * NS / (self.last_ns - self.first_ns) if self.last_ns > self.first_ns else 0.0

    def take(self, samples: Samples, now_ns: int) -> None:
        """Count a run that came just now. A camera knows better than the clock when that was."""
        at_ns = int(samples.stamps_ns[-1]) if samples.stamps_ns is not None else now_ns
        self.count += len(samples.data) if self.first_ns else 0
        self.first_ns, self.last_ns = self.first_ns or at_ns, at_ns


def listen(
    sensors: Sequence[SensorSettings],
    windows: WindowSettings,
    base: Path,
    clock: Clock,
    patience_s: float,
    tell: Callable[[str], None],
) -> list[Heard]:
    """What each sensor gives until it has given WANTED windows, or `patience_s` beside their length have passed."""
    origin_ns = clock.now_ns()
    heard = [Heard(sensor) for sensor in sensors]
    sources = [open_sensor(sensor, clock, origin_ns, base) for sensor in sensors]
    threads = [
        threading.Thread(target=_hear, args=(one, source, windows, clock), daemon=True)
        for one, source in zip(heard, sources, strict=True)
    ]
    for thread in threads:
        thread.start()
    left_s = patience_s + WANTED * windows.length_s
    while left_s > 0 and any(thread.is_alive() for thread in threads):
        waiting = [one.sensor.name for one, thread in zip(heard, threads, strict=True) if thread.is_alive()]
        tell(f"listening to {', '.join(waiting)}: {left_s:.0f} s at most")
        clock.sleep(STEP_S)
        left_s -= STEP_S
    for source, thread in zip(sources, threads, strict=True):
        source.close()
        thread.join(timeout=2)
    tell("")
    return heard


def _hear(heard: Heard, source: Sensor, windows: WindowSettings, clock: Clock) -> None:
    cutter = Cutter(round(windows.length_s * NS), round(windows.hop_s * NS))
    quality = Quality()
    try:
        for samples in source.samples():
            heard.take(samples, clock.now_ns())
            for window in cutter.push(samples):
                heard.flags = quality.flags(window)
                heard.windows.append(window)
            if len(heard.windows) >= WANTED:
                return
    except SensorError as error:
        heard.problem = error
    finally:
        source.close()


def skews_ns(heard: Sequence[Heard]) -> Iterator[tuple[str, str, int]]:
    """By pair of sensors, how much later the second captured the last interval that both have, in the mean."""
    for place, one in enumerate(heard):
        for other in heard[place + 1 :]:
            mine = {window.start_ns: window.captured_ns for window in one.windows}
            both = [(window.captured_ns, mine[window.start_ns]) for window in other.windows if window.start_ns in mine]
            if both:
                yield one.sensor.name, other.sensor.name, both[-1][0] - both[-1][1]
