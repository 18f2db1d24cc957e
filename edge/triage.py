"""Is the sensor at fault, or the process that it watches? Asked when an alarm is raised, of the moments that led to it.

The hypothesis of product words, section 2, goes by evidence alone: two sensors unlike normal at once are a process, one
whose agreement falls is a sensor. It takes a bearing for a broken microphone, since both change one sensor's windows
and its agreement. So a sensor that is alone in being unlike normal is asked a second question: is its background as it
was? What lies behind the process (the edge of the picture where nothing ever moves, the floor of the sound between the
machine's noises) is changed by dirt, blur, a knock, a fading or covered microphone, and not by the part or the machine.
What a cable adds to a sound leaves that floor: so the last sounds are searched for the clicks of a bad contact
(edge.clicks), and heard once more without the mains (edge.mains).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge import clicks, mains
from lineside.features import CameraPrepare, MicrophonePrepare, Prepare
from lineside.messages import AlarmCause
from lineside.windows import Window

Listen = Callable[[Window], float]  # the evidence, in nats, that one sensor's window gives alone

STRANGE = 2.0  # nats of evidence, in the median over the moments: one window in seven of normal running has as much
FAINT = 2.0  # a sensor with so many times less evidence than another may be unlike normal by chance
MAD = 1.4826  # of a normal law, to its standard deviation
EDGE = 8  # the picture's outer eighth on each side
GREY, MOST = 6.0, 0.99  # a change in standard deviations that is no still pixel's; what it keeps to, of its time
CHANGED = 0.01  # of the still pixels: from here on there is something between them and the camera
RESTLESS, ALL_OVER = 3.0, 0.5  # so many times their deviation, by so many still pixels: a thing that moves is smaller
FLOOR, FELL, QUIET = 0.1, 4.0, 0.05  # quantile over time; standard deviations; least deviation of a floor, ln of power
SUNK = 0.3  # of a sound's floors


class Scene(Protocol):
    """A sensor's background: `altered` tells what of it is not as it was in prepared windows (n, *shape).

    It is empty where all is as it was, or as near to it as the process may bring it.
    """

    def altered(self, windows: NDArray[np.generic]) -> str: ...


@dataclass(frozen=True)
class CameraScene:
    """Pixels at the picture's edge that did not move in normal running: their usual value and its deviation."""

    usual: NDArray[np.float32]
    deviation: NDArray[np.float32]
    still: NDArray[np.bool_]

    @classmethod
    def fit(cls, windows: NDArray[np.generic]) -> CameraScene:
        """Learn from prepared pictures (n, channels, height, width)."""
        shown = windows.astype(np.float32)
        usual, deviation = _middle(shown)
        low, high = np.quantile(shown, [1 - MOST, MOST], axis=0)
        edge = np.ones(usual.shape, np.bool_)
        rows, columns = (max(1, size // EDGE) for size in usual.shape[1:])
        edge[:, rows:-rows, columns:-columns] = False
        return cls(usual, deviation, edge & (high - low <= GREY * deviation))

    def altered(self, windows: NDArray[np.generic]) -> str:
        """What lies on a lens stays, and is small or large; gain, exposure and supply are of all pixels at once."""
        if not self.still.any():
            return ""
        now, deviation = _middle(windows.astype(np.float32))
        off = float((np.abs(now - self.usual) > GREY * self.deviation)[self.still].mean())
        restless = float((deviation > RESTLESS * self.deviation)[self.still].mean())
        if off >= CHANGED:
            return f"{off:.0%} of what is still at the picture's edge looks otherwise"
        return f"{restless:.0%} of what is still at the picture's edge flickers" if restless >= ALL_OVER else ""


def _middle(shown: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The usual value of each pixel and its deviation, a level of grey at least."""
    usual = np.median(shown, axis=0)
    return usual, 1 + MAD * np.median(np.abs(shown - usual), axis=0)


@dataclass(frozen=True)
class MicrophoneScene:
    """The floor of each band, what is left of it between the machine's noises: a new noise never lowers it."""

    usual: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def fit(cls, windows: NDArray[np.generic]) -> MicrophoneScene:
        """Learn from prepared sounds (n, 1, bands, times), ln of power."""
        floors = _floors(windows)
        usual = np.median(floors, axis=0)
        return cls(usual, MAD * np.median(np.abs(floors - usual), axis=0) + QUIET)

    def altered(self, windows: NDArray[np.generic]) -> str:
        fallen = float(((np.median(_floors(windows), axis=0) - self.usual) / self.deviation < -FELL).mean())
        return f"{fallen:.0%} of the pitches sound fainter between the noises" if fallen >= SUNK else ""


def _floors(windows: NDArray[np.generic]) -> NDArray[np.float64]:
    return np.asarray(np.quantile(windows[:, 0].astype(np.float64), FLOOR, axis=-1))


def scene(spec: Prepare, windows: NDArray[np.generic]) -> Scene | None:
    """The background of a sensor with this preparation; None for one whose windows have none."""
    if isinstance(spec, CameraPrepare):
        return CameraScene.fit(windows)
    return MicrophoneScene.fit(windows) if isinstance(spec, MicrophonePrepare) else None


@dataclass(frozen=True)
class Seen:
    """One moment before an alarm: evidence in nats of each sensor alone and of each pair, and prepared windows.

    `sounds` are the raw windows of microphones: a prepared one does not tell 50 Hz from 80.
    """

    single: Mapping[str, float]
    pair: Mapping[str, float]
    windows: Mapping[str, NDArray[np.generic]]
    sounds: Mapping[str, Window] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """`sensor` names the one at fault where the cause is a sensor; `why` is for a person."""

    cause: AlarmCause
    sensor: str
    why: str


def decide(
    moments: Sequence[Seen], scenes: Mapping[str, Scene], listen: Listen | None = None, suspect: str = ""
) -> Verdict:
    """The cause of what these moments have in common (n >= 1).

    `listen` judges a sound once more, without the mains in it; without it no hum is told. `suspect` is the sensor that
    gave most of the evidence of an alarm of weak evidence that lasts, which these last moments alone need not show.
    """
    strength = {name: _usual(moments, name) for name in _names(moments)}
    strange = [name for name, evidence in strength.items() if evidence >= STRANGE]
    found = {name: _altered(moments, name, scenes[name]) for name in strange or strength if name in scenes}
    altered = {name: what for name, what in found.items() if what}
    if not strange:
        return _faint(altered, suspect, scenes)
    most = max(strange, key=lambda name: strength[name])
    rivals = [name for name in strange if name != most and strength[name] > strength[most] / FAINT]
    told = " and ".join(strange)
    if rivals and altered:
        return Verdict(
            "undecided", "", f"{told} are unlike normal at once, {next(iter(altered))} in its background too"
        )
    if most in altered:
        why = f"{most} is far more unlike normal than the rest, and so is its background: {altered[most]}"
        return Verdict("sensor", most, why)
    if not rivals and (why := _cable(moments, most, listen)):
        return Verdict("sensor", most, why)
    if len(strange) > 1 or most in scenes:
        return Verdict("process", "", f"unlike normal: {told}; the background of {most} is as it was")
    return by_agreement(moments, most)


def _faint(altered: Mapping[str, str], suspect: str, scenes: Mapping[str, Scene]) -> Verdict:
    """Of moments in which no sensor alone is unlike normal; `altered` are those whose backgrounds are."""
    if len(altered) == 1 and suspect in ("", *altered):
        ((name, what),) = altered.items()
        return Verdict("sensor", name, f"{name} is hardly unlike normal, but its background is: {what}")
    if altered or suspect not in scenes:
        return Verdict("undecided", "", "no sensor alone is unlike normal")
    return Verdict("process", "", f"mostly {suspect} is a little unlike normal; the backgrounds are as they were")


def _cable(moments: Sequence[Seen], name: str, listen: Listen | None) -> str:
    """What a sound's way to the device has added to it, in words; empty for nothing that could be told."""
    if rate := _clicks(moments, name):
        return f"{name} crackles: {rate:.0f} clicks a second go to one side, as of a bad contact and of no sound"
    if listen is not None and (hum_hz := _hum(moments, name, listen)):
        return f"{name} picks up the mains: without {hum_hz:.0f} Hz and its multiples it is much more like normal"
    return ""


def _clicks(moments: Sequence[Seen], name: str) -> float:
    """One-sided clicks a second in most of these sounds; 0 for none."""
    sounds = [moment.sounds[name] for moment in moments if name in moment.sounds]
    return float(np.median([clicks.one_sided(sound.values, sound.rate_hz) for sound in sounds])) if sounds else 0.0


def _hum(moments: Sequence[Seen], name: str, listen: Listen) -> float:
    """The frequency in Hz of the mains that is most of what is strange in these sounds; 0 for none."""
    heard = [(moment.single[name], moment.sounds[name]) for moment in moments if name in moment.sounds]
    for grid_hz in mains.GRIDS_HZ:
        found = [(evidence, sound, mains.lines(sound.values, sound.rate_hz, grid_hz)) for evidence, sound in heard]
        humming = [(evidence, sound, lines) for evidence, sound, lines in found if lines]
        if 2 * len(humming) <= len(moments):
            continue
        rest = [listen(replace(w, data=mains.without(w.values, w.rate_hz, lines))) for _, w, lines in humming]
        if np.median(rest) <= np.median([evidence for evidence, _, _ in humming]) / FAINT:
            return grid_hz
    return 0.0


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


def _altered(moments: Sequence[Seen], name: str, known: Scene) -> str:
    windows = [moment.windows[name] for moment in moments if name in moment.windows]
    return known.altered(np.stack(windows)) if windows else ""
