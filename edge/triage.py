"""Is the sensor at fault, or the process that it watches? Asked when an alarm is raised, of the moments that led to it.

The hypothesis of product words, section 2, goes by evidence alone: two sensors unlike normal at once are a process, one
whose agreement falls is a sensor. It takes a bearing for a broken microphone, since both change one sensor's windows
and its agreement. So a sensor that is alone in being unlike normal is asked a second question: is its background as it
was? What lies behind the process (the edge of the picture where nothing ever moves, the floor of the sound between the
machine's noises) is changed by dirt, blur, a knock, a fading or covered microphone, and not by the part or the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lineside.features import CameraPrepare, MicrophonePrepare, Prepare
from lineside.messages import AlarmCause

STRANGE = 2.0  # nats of evidence, in the median over the moments: one window in seven of normal running has as much
FAINT = 2.0  # a sensor with so many times less evidence than another may be unlike normal by chance
MAD = 1.4826  # of a normal law, to its standard deviation
EDGE = 8  # the picture's outer eighth on each side
GREY, MOST = 6.0, 0.99  # a change in standard deviations that is no still pixel's; what it keeps to, of its time
FLOOR, FELL, QUIET = 0.1, 4.0, 0.05  # quantile over time; standard deviations; least deviation of a floor, ln of power


class Scene(Protocol):
    """A sensor's background: `changed` is the share of it that is not as it was in prepared windows (n, *shape).

    From `limit` on it is the sensor's own doing.
    """

    @property
    def limit(self) -> float: ...

    def changed(self, windows: NDArray[np.generic]) -> float: ...


@dataclass(frozen=True)
class CameraScene:
    """Pixels at the picture's edge that did not move in normal running: their usual value and its deviation."""

    usual: NDArray[np.float32]
    deviation: NDArray[np.float32]
    still: NDArray[np.bool_]
    limit: float = 0.01

    @classmethod
    def fit(cls, windows: NDArray[np.generic]) -> CameraScene:
        """Learn from prepared pictures (n, channels, height, width)."""
        shown = windows.astype(np.float32)
        usual = np.median(shown, axis=0)
        deviation = 1 + MAD * np.median(np.abs(shown - usual), axis=0)
        low, high = np.quantile(shown, [1 - MOST, MOST], axis=0)
        edge = np.ones(usual.shape, np.bool_)
        rows, columns = (max(1, size // EDGE) for size in usual.shape[1:])
        edge[:, rows:-rows, columns:-columns] = False
        return cls(usual, deviation, edge & (high - low <= GREY * deviation))

    def changed(self, windows: NDArray[np.generic]) -> float:
        now = np.median(windows.astype(np.float32), axis=0)
        off = np.abs(now - self.usual) > GREY * self.deviation
        return float(off[self.still].mean()) if self.still.any() else 0.0


@dataclass(frozen=True)
class MicrophoneScene:
    """The floor of each band, what is left of it between the machine's noises: a new noise never lowers it."""

    usual: NDArray[np.float64]
    deviation: NDArray[np.float64]
    limit: float = 0.3

    @classmethod
    def fit(cls, windows: NDArray[np.generic]) -> MicrophoneScene:
        """Learn from prepared sounds (n, 1, bands, times), ln of power."""
        floors = _floors(windows)
        usual = np.median(floors, axis=0)
        return cls(usual, MAD * np.median(np.abs(floors - usual), axis=0) + QUIET)

    def changed(self, windows: NDArray[np.generic]) -> float:
        fallen = (np.median(_floors(windows), axis=0) - self.usual) / self.deviation < -FELL
        return float(fallen.mean())


def _floors(windows: NDArray[np.generic]) -> NDArray[np.float64]:
    return np.asarray(np.quantile(windows[:, 0].astype(np.float64), FLOOR, axis=-1))


def scene(spec: Prepare, windows: NDArray[np.generic]) -> Scene | None:
    """The background of a sensor with this preparation; None for one whose windows have none."""
    if isinstance(spec, CameraPrepare):
        return CameraScene.fit(windows)
    return MicrophoneScene.fit(windows) if isinstance(spec, MicrophonePrepare) else None


@dataclass(frozen=True)
class Seen:
    """One moment before an alarm: evidence in nats of each sensor alone and of each pair, and prepared windows."""

    single: Mapping[str, float]
    pair: Mapping[str, float]
    windows: Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Verdict:
    """`sensor` names the one at fault where the cause is a sensor; `why` is for a person."""

    cause: AlarmCause
    sensor: str
    why: str


def decide(moments: Sequence[Seen], scenes: Mapping[str, Scene]) -> Verdict:
    """The cause of what these moments have in common (n >= 1)."""
    strength = {name: _usual(moments, name) for name in _names(moments)}
    strange = [name for name, evidence in strength.items() if evidence >= STRANGE]
    if not strange:
        return Verdict("undecided", "", "no sensor alone is unlike normal")
    altered = [name for name in strange if name in scenes and _altered(moments, name, scenes[name])]
    most = max(strange, key=lambda name: strength[name])
    rivals = [name for name in strange if name != most and strength[name] > strength[most] / FAINT]
    told = " and ".join(strange)
    if rivals and altered:
        return Verdict("undecided", "", f"{told} are unlike normal at once, {altered[0]} in its background too")
    if most in altered:
        return Verdict("sensor", most, f"{most} is far more unlike normal than the rest, and so is its background")
    if len(strange) > 1 or most in scenes:
        return Verdict("process", "", f"unlike normal: {told}; the background of {most} is as it was")
    return by_agreement(moments, most)


def by_agreement(moments: Sequence[Seen], alone: str) -> Verdict:
    """The hypothesis by evidence alone, for a sensor without a background: does it still agree with the others?"""
    pairs = [name for moment in moments for name in moment.pair if alone in name.split("+")]
    if not pairs:
        return Verdict("undecided", "", f"{alone} is unlike normal, and there is no other sensor to compare it with")
    falls = max(float(np.median([m.pair[name] for m in moments if name in m.pair])) for name in set(pairs))
    if falls >= STRANGE:
        return Verdict("sensor", alone, f"{alone} alone is unlike normal, and no longer agrees with the others")
    return Verdict("process", "", f"{alone} alone is unlike normal, and agrees with the others as it did")


def _names(moments: Sequence[Seen]) -> list[str]:
    return sorted({name for moment in moments for name in moment.single})


def _usual(moments: Sequence[Seen], name: str) -> float:
    return float(np.median([moment.single[name] for moment in moments if name in moment.single]))


def _altered(moments: Sequence[Seen], name: str, known: Scene) -> bool:
    windows = [moment.windows[name] for moment in moments if name in moment.windows]
    return bool(windows) and known.changed(np.stack(windows)) >= known.limit
