"""The table of faults that can be laid over samples: what a worn or disturbed line, or a bad sensor, would look like.

They serve the demo's panel, the tests, and the measuring of how well faults are seen and told apart. Every effect is a
function of the time since the fault began, so that it runs on over the edges of blocks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

from edge import picture_faults as picture
from edge import sound_faults as sound
from edge.rhythm import SLOW
from edge.sensors import line
from edge.sensors.simulation import LineSamples
from lineside.clock import NS
from lineside.windows import Samples

LATE_NS = 10 * NS  # by which samples of one sensor may come after those of another


class Effect(Protocol):
    """Lays one fault over a run of samples of one sensor; the fault began at `since_ns`."""

    def __call__(self, samples: Samples, since_ns: int) -> Samples: ...


@dataclass(frozen=True)
class Fault:
    """A row of the table: what is at fault, the sensor or the process that it watches, and how that shows.

    `effects` has, by modality, how to make the effect anew for one sensor. `upset` is what the fault does to the state
    of the simulated line, from which all sensors of that line then take their samples, in the place of `effects`.
    """

    cause: Literal["sensor", "process"]
    about: str
    effects: Mapping[str, Callable[[], Effect]]
    upset: line.Upset | None = None


def _added(noise: sound.Noise, ratio: float) -> Callable[[], Effect]:
    return partial(sound.Added, noise, ratio)


FAULTS: dict[str, Fault] = {
    "bearing_noise": Fault(
        "process", "a rolling bearing with a damaged race", {"microphone": _added(sound.bearing, 1.3)}
    ),
    "misaligned_part": Fault(
        "process", "the part lies turned and off its place", {"camera": lambda: picture.misaligned_part}
    ),
    "missing_part": Fault(
        "process", "there is no part in its place", {"camera": lambda: picture.missing_part}, line.no_part
    ),
    "foreign_object": Fault(
        "process",
        "a tool lies on the belt and rattles",
        {"camera": lambda: picture.foreign_object, "microphone": _added(sound.rattle, 1.5)},
        line.foreign_object,
    ),
    "wrong_product": Fault(
        "process",
        "another product comes than the line is set up for",
        {"camera": lambda: picture.wrong_product, "microphone": partial(sound.Shifted, 1.26)},
        line.wrong_product,
    ),
    "slow_motor": Fault(
        "process",
        "the motor turns at two thirds of its speed",
        {"camera": picture.SlowMotor, "microphone": partial(sound.Shifted, SLOW)},
        line.slow_motor,
    ),
    "slipping_belt": Fault(
        "process",
        "the belt slips and squeals, parts lie behind their place",
        {"camera": lambda: picture.slipping_belt, "microphone": _added(sound.squeal, 1.5)},
        line.slipping_belt,
    ),
    "knocking": Fault(
        "process",
        "something strikes the machine's frame again and again",
        {"camera": lambda: picture.knocking, "microphone": _added(sound.knocks, 1.5)},
    ),
    "air_leak": Fault("process", "compressed air leaks from a hose", {"microphone": _added(sound.air_leak, 1.0)}),
    "gear_whine": Fault("process", "a gear whines with worn teeth", {"microphone": _added(sound.gear_whine, 1.0)}),
    "wrong_colour": Fault("process", "the parts are of a wrong colour", {"camera": lambda: picture.wrong_colour}),
    "chatter": Fault(
        "process",
        "the press chatters as it comes down",
        {"camera": lambda: picture.chatter, "microphone": _added(sound.chatter, 1.5)},
    ),
    "jammed_belt": Fault(
        "process", "the belt is jammed, the press goes on", {"camera": picture.JammedBelt}, line.jammed_belt
    ),
    "cavitation": Fault("process", "a pump draws air and cavitates", {"microphone": _added(sound.cavitation, 1.2)}),
    "smoke": Fault("process", "oil burns on the part, smoke rises from it", {"camera": lambda: picture.smoke}),
    "dirty_lens": Fault("sensor", "oil and dust on the camera's lens", {"camera": lambda: picture.dirty_lens}),
    "black": Fault("sensor", "the camera sees nothing", {"camera": lambda: picture.black}),
    "frozen": Fault("sensor", "the camera gives one picture for ever", {"camera": picture.Frozen}),
    "defocused": Fault("sensor", "the camera is out of focus", {"camera": lambda: picture.defocused}),
    "knocked_camera": Fault("sensor", "the camera has been turned aside", {"camera": lambda: picture.knocked_camera}),
    "overexposed": Fault("sensor", "the camera's gain drifts upwards", {"camera": lambda: picture.overexposed}),
    "dead_rows": Fault("sensor", "the camera does not read some rows", {"camera": lambda: picture.dead_rows}),
    "colour_cast": Fault("sensor", "the camera's white balance is wrong", {"camera": lambda: picture.colour_cast}),
    "rolling_bands": Fault(
        "sensor", "the camera's exposure beats with the lamps", {"camera": lambda: picture.rolling_bands}
    ),
    "water_drop": Fault("sensor", "a drop of water hangs on the camera's lens", {"camera": lambda: picture.water_drop}),
    "loose_camera": Fault(
        "sensor", "the camera's bracket is loose and shakes", {"camera": lambda: picture.loose_camera}
    ),
    "noisy_camera": Fault(
        "sensor",
        "the camera's sensor is hot and its picture is full of noise",
        {"camera": lambda: picture.noisy_camera},
    ),
    "muted": Fault("sensor", "the microphone gives digital silence", {"microphone": lambda: sound.muted}),
    "clipped": Fault("sensor", "the microphone's gain is far too high", {"microphone": lambda: sound.clipped}),
    "gain_loss": Fault("sensor", "the microphone's gain is 20 dB too low", {"microphone": lambda: sound.gain_loss}),
    "mains_hum": Fault("sensor", "the microphone's cable picks up the mains", {"microphone": _added(sound.hum, 1.0)}),
    "ground_loop": Fault("sensor", "the microphone is earthed twice", {"microphone": _added(sound.ground_loop, 1.0)}),
    "crackling": Fault("sensor", "the microphone's contacts crackle", {"microphone": _added(sound.crackle, 1.5)}),
    "phone_buzz": Fault(
        "sensor", "a mobile telephone buzzes in the microphone's cable", {"microphone": _added(sound.phone_buzz, 1.0)}
    ),
    "stuttering": Fault("sensor", "the microphone's interface gives blocks twice", {"microphone": sound.Stuttering}),
    "covered": Fault("sensor", "the microphone is covered with something thick", {"microphone": sound.Covered}),
    "wind": Fault("sensor", "wind or a hand on the microphone", {"microphone": _added(sound.wind, 2.0)}),
    "dropouts": Fault("sensor", "the microphone's plug is loose", {"microphone": lambda: sound.dropouts}),
}


def _order(kind: str) -> tuple[bool, bool]:
    """A line's state comes before what is laid over its samples, and the process before the sensor that watches it."""
    return FAULTS[kind].cause == "sensor", FAULTS[kind].upset is None


@dataclass
class _Running:
    fault: Fault
    until_ns: int
    since_ns: int | None = None  # it begins with the first samples that it strikes, whichever sensor's they are
    effects: dict[str, Effect] = field(default_factory=dict)
    ended: bool = False  # for one sensor at least: what others took before the end may still be on its way

    def strikes(self, samples: Samples) -> bool:
        upset = self.fault.upset is not None and isinstance(samples, LineSamples)
        return upset or samples.modality in self.fault.effects

    def on(self, samples: Samples) -> Samples:
        """The samples with the fault on them."""
        self.since_ns = samples.start_ns if self.since_ns is None else self.since_ns
        if isinstance(samples, LineSamples) and self.fault.upset is not None:
            return samples.under(self.fault.upset)
        effect = self.effects.setdefault(samples.sensor, self.fault.effects[samples.modality]())
        return effect(samples, self.since_ns)


class Injector:
    """Lays the faults that are running over the samples that pass; safe to use from several threads."""

    def __init__(self) -> None:
        self._running: dict[str, _Running] = {}
        self._lock = threading.Lock()

    def start(self, kind: str, until_ns: int) -> None:
        """Begin a fault with the next samples; it ends with those captured at `until_ns`. Begun again, it goes on.

        Raises ValueError, naming the kinds there are, for an unknown one.
        """
        if kind not in FAULTS:
            raise ValueError(f"no fault {kind!r}; known are {', '.join(FAULTS)}")
        with self._lock:
            if kind not in self._running or self._running[kind].ended:
                self._running[kind] = _Running(FAULTS[kind], until_ns)
            self._running[kind].until_ns = until_ns

    def stop(self) -> None:
        """End all faults now."""
        with self._lock:
            self._running.clear()

    def running(self) -> dict[str, int]:
        """Kinds that were started and have not yet ended, with their ends."""
        with self._lock:
            return {kind: running.until_ns for kind, running in self._running.items() if not running.ended}

    def apply(self, samples: Samples) -> Samples:
        """The samples with all faults of their sensor on them; the very same object when there is none."""
        with self._lock:
            for kind in sorted(self._running, key=_order):
                running = self._running[kind]
                if not len(samples.data) or not running.strikes(samples):
                    continue
                if samples.start_ns < running.until_ns:
                    samples = running.on(samples)
                elif samples.start_ns < running.until_ns + LATE_NS:
                    running.ended = True
                else:
                    del self._running[kind]
        return samples
