"""Faults rehearsed: while normal running is learned, one kind after the other is laid over a good moment.

So a device knows what its own line would look and sound like at fault, as its encoders would be given it, and a
contract (edge.contract) can be measured for every new encoder long after the raw samples are gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.chance import uniform
from edge.faults import FAULTS, Effect
from lineside import features
from lineside.clock import NS
from lineside.features import CameraPrepare, Prepare
from lineside.quality import Quality
from lineside.windows import Samples, Window

MOST = 32  # trials kept of one kind
AGE_S = (2.0, 20.0)  # how long a fault has been there when it is tried: many have a rhythm, some grow
PICTURES = 4  # of a window at least: what no encoder takes need not be changed, but a slow motor shows older ones
FINER = 2  # a larger picture is first brought to so many times the encoder's size, from which its cells are exact sums
KEY = "fault"  # what begins the names of a file's arrays


@dataclass(frozen=True)
class Trial:
    """One kind of fault over the good moment that began at `start_ns`.

    By sensor that it strikes: the prepared window that would have come, or the flags that would have kept it out.
    """

    kind: str
    start_ns: int
    windows: Mapping[str, NDArray[np.generic]]
    flags: Mapping[str, frozenset[str]]

    @property
    def struck(self) -> frozenset[str]:
        """The sensors that the fault reaches."""
        return frozenset(self.windows) | frozenset(self.flags)


@dataclass
class Rehearsal:
    """Whose turn it is; `specs` are the encoders' preparations by modality.

    One moment costs one fault at most. When a kind has more than MOST trials, every second one is dropped, and from
    then on half as many moments are tried, so that what is kept is spread over the whole time.
    """

    specs: Mapping[str, Prepare]
    kinds: Sequence[str] = tuple(FAULTS)
    _every: int = 1
    _heard: int = 0
    _turn: int = 0
    _last: Mapping[str, Window] = field(default_factory=dict)

    def hear(self, kept: tuple[Trial, ...], good: Mapping[str, Window]) -> tuple[Trial, ...]:
        """`kept`, and one trial more when it is time; `good` are the next moment's windows that have no flag.

        A fault needs what came just before a window: a sensor that was not good then is not struck now.
        """
        before, self._last = self._last, good
        self._heard += 1
        led = {name: window for name, window in good.items() if name in before and _lead(before[name], window)}
        if not led or self._heard % self._every:
            return kept
        kind, struck = self._next(led)
        if not struck:
            return kept
        kept = (*kept, self._trial(kind, [_Run.of(before[n], led[n], self.specs[led[n].modality]) for n in struck]))
        if Counter(trial.kind for trial in kept)[kind] > MOST:
            self._every *= 2
            return _halved(kept)
        return kept

    def _next(self, windows: Mapping[str, Window]) -> tuple[str, list[str]]:
        """The next kind that reaches one of these sensors, and which: a sensor's own fault is of one at a time.

        Each round has an order of its own, or one kind might always meet the same part of the machine's cycle.
        """
        for _ in self.kinds:
            turns, place = divmod(self._turn, len(self.kinds))
            self._turn += 1
            kind = self.kinds[np.argsort(uniform(turns, np.arange(len(self.kinds))))[place]]
            fault = FAULTS[kind]
            struck = sorted(name for name, window in windows.items() if window.modality in fault.effects)
            if struck:
                return kind, struck if fault.cause == "process" else [struck[turns % len(struck)]]
        return "", []

    def _trial(self, kind: str, runs: Sequence[_Run]) -> Trial:
        start_ns = runs[0].window.start_ns
        low, high = AGE_S
        age_s = low + (high - low) * (1 + float(uniform(31, start_ns // (NS // 1000)))) / 2
        since_ns = min(run.samples.start_ns for run in runs) - round(age_s * NS)
        windows, flags = {}, {}
        for run in runs:
            now, found = run.under(FAULTS[kind].effects[run.window.modality](), since_ns)
            if found:
                flags[now.sensor] = found
            else:
                windows[now.sensor] = features.prepare(self.specs[now.modality], now)
        return Trial(kind, start_ns, windows, flags)


@dataclass(frozen=True)
class _Run:
    """A window and `samples` of it, with `lead` more from just before it: of large pictures, no more than is needed."""

    window: Window
    samples: Samples
    lead: int

    @classmethod
    def of(cls, before: Window, window: Window, spec: Prepare) -> _Run:
        lead, first_ns, rate_hz = _lead(before, window), _first_ns(window), window.rate_hz
        if not isinstance(spec, CameraPrepare):
            data = np.concatenate([before.values[:lead], window.values])
            start_ns = first_ns - round(lead * NS / rate_hz)
            return cls(window, Samples(window.sensor, window.modality, start_ns, rate_hz, data), lead)
        now, past = _spread(len(window.data), spec.frames), _spread(lead, spec.frames)[::2]
        pictures = [*(before.data[int(i)] for i in past), *(window.data[int(i)] for i in now)]
        data = np.stack([_smaller(spec, picture) for picture in pictures])
        stamps = first_ns + np.round(np.concatenate([past - lead, now]) * NS / rate_hz).astype(np.int64)
        return cls(window, Samples(window.sensor, window.modality, int(stamps[0]), rate_hz, data, stamps), len(past))

    def under(self, effect: Effect, since_ns: int) -> tuple[Window, frozenset[str]]:
        """The window with the fault on it, and the flags that a device would give it."""
        data = effect(self.samples, since_ns).data
        quality, now = Quality(), replace(self.window, data=data[self.lead :])
        quality.flags(replace(self.window, data=data[: self.lead]))  # for the rules that remember
        return now, quality.flags(now)


def _lead(before: Window, window: Window) -> int:
    """How many samples of `before` come just before those of `window`; 0 where it does not lead up to it."""
    count = round((_first_ns(window) - _first_ns(before)) * window.rate_hz / NS)
    like = before.data.shape[1:] == window.data.shape[1:]
    return count if like and 0 < count <= len(before.data) else 0


def _first_ns(window: Window) -> int:
    """When the first sample was captured: a window keeps the mean alone."""
    return window.captured_ns - round((len(window.data) - 1) * NS / window.rate_hz / 2)


def _spread(count: int, frames: int) -> NDArray[np.intp]:
    """Places of PICTURES or a few more of `count` pictures, among them the `frames` that a preparation takes.

    >>> _spread(30, 2).tolist(), _spread(4, 2).tolist()
    ([0, 10, 19, 29], [0, 1, 2, 3])
    """
    steps = max(1, frames - 1)
    wanted = 1 + steps * -(-(PICTURES - 1) // steps)
    return np.unique(np.linspace(0, count - 1, wanted).round().astype(np.intp))


def _smaller(spec: CameraPrepare, picture: NDArray[Any]) -> NDArray[Any]:
    height, width = FINER * spec.height, FINER * spec.width
    if picture.shape[0] <= height or picture.shape[1] <= width:
        return picture
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA))


def bounded(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """These, halved until no kind has more than MOST."""
    kept = tuple(trials)
    while _most(kept) > MOST:
        kept = _halved(kept)
    return kept


def _most(trials: Sequence[Trial]) -> int:
    return max(Counter(trial.kind for trial in trials).values(), default=0)


def _halved(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Every second trial of each kind on the same sensors."""
    seen: Counter[tuple[str, frozenset[str]]] = Counter()
    kept = []
    for trial in trials:
        alike = trial.kind, trial.struck
        if seen[alike] % 2 == 0:
            kept.append(trial)
        seen[alike] += 1
    return tuple(kept)


def to_arrays(trials: Sequence[Trial]) -> dict[str, NDArray[np.generic]]:
    """The trials as arrays for one npz file, by kind and sensor; a window that is flagged has its flags instead."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for kind, sensor in sorted({(trial.kind, sensor) for trial in trials for sensor in trial.struck}):
        mine = [trial for trial in trials if trial.kind == kind and sensor in trial.struck]
        name = f"{KEY}:{kind}:{sensor}"
        arrays[f"{name}:start_ns"] = np.array([trial.start_ns for trial in mine], np.int64)
        arrays[f"{name}:flags"] = np.array([",".join(sorted(trial.flags.get(sensor, ()))) for trial in mine])
        if windows := [trial.windows[sensor] for trial in mine if sensor in trial.windows]:
            arrays[f"{name}:windows"] = np.stack(windows)
    return arrays


def from_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> tuple[Trial, ...]:
    """What `to_arrays` made, in order of time; nothing where there is nothing. Raises ValueError when it is damaged."""
    windows: dict[tuple[int, str], dict[str, NDArray[np.generic]]] = {}
    flags: dict[tuple[int, str], dict[str, frozenset[str]]] = {}
    for name in (key.removesuffix(":flags") for key in arrays if key.startswith(f"{KEY}:") and key.endswith(":flags")):
        _, kind, sensor = name.split(":")
        found = [str(one) for one in arrays[f"{name}:flags"]]
        given = iter(arrays[f"{name}:windows"] if not all(found) else ())
        for start_ns, flagged in zip(arrays[f"{name}:start_ns"].tolist(), found, strict=True):
            if flagged:
                flags.setdefault((start_ns, kind), {})[sensor] = frozenset(flagged.split(","))
            elif (window := next(given, None)) is not None:
                windows.setdefault((start_ns, kind), {})[sensor] = window
            else:
                raise ValueError(f"{name}: fewer windows than trials")
    tried = sorted({*windows, *flags})
    return tuple(Trial(kind, at, windows.get((at, kind), {}), flags.get((at, kind), {})) for at, kind in tried)
