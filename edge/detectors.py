"""What may watch for drift: the e-detector of lineside.drift, or one of river's for each channel, to compare it with.

All see the same normal scores (lineside.reference), so that level, state, day and memory are taken out for each alike;
each threshold is set from the same budget, shared out over the channels. Only the e-detector's false alarms are bounded
by that budget; what each of the others lacks stands at its row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lineside.drift import Detector, Finding, Scores, moved
from lineside.errors import ConfigError
from lineside.reference import Floats, Reference
from lineside.trace import Trace

RING = 512  # windows that a restart plays again to one of river's
CHECKED = 32  # ADWIN looks once in so many values
KS_WINDOW, KS_RECENT = 300, 100
DRIFT, OVERSHOOT = 0.25, 1.166  # of Page-Hinkley: half of the least shift it is tuned to; Siegmund's correction

Arrays = dict[str, NDArray[np.generic]]


class DriftDetector(Protocol):
    """What lineside.drift.Detector promises; see there."""

    def hear(self, values: Floats, start_ns: int, stratum: int = 0) -> Finding | None:
        """Take the values (K,) of the next window, NaN where absent; after a finding it begins anew."""

    def reset(self) -> None:
        """Begin to watch anew."""

    def gauges(self) -> dict[str, float]:
        """Evidence of each channel, 0 to 1, in the reference's order."""

    def state(self) -> Arrays:
        """What a restart would lose, in arrays of fixed size."""

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from `state`. Raises ValueError when it is of another reference."""


Factory = Callable[[Reference, float, Floats], DriftDetector]  # of reference, run length in windows, share by channel


class PerChannel:
    """One of river's detectors for each channel; `make` gives one for a number of false alarms a window.

    Onset and effect are the likeliest shift within the last RING windows; evidence is that shift's log-likelihood over
    ln of the channel's budget, which is not the quantity that river decides by. A restart plays these windows again:
    up to RING windows after a beginning nothing is forgotten, later what lies before them is.
    """

    def __init__(self, reference: Reference, run_length: float, weights: Floats, make: Callable[[float], Any]) -> None:
        self._reference, self._make = reference, make
        self._rates = np.maximum(weights, 1e-9) / run_length
        self._scores, self._trace = Scores(reference), Trace(len(reference.names))
        self._ring = np.full((RING, len(reference.names)), np.nan)
        self._starts = np.zeros(RING, np.int64)
        self.reset()

    def reset(self) -> None:
        """Begin to watch anew, as after an alarm."""
        self._each = [self._make(float(rate)) for rate in self._rates]
        self._ring.fill(np.nan)
        self._heard = 0

    def hear(self, values: Floats, start_ns: int, stratum: int = 0) -> Finding | None:
        """As DriftDetector.hear; of several channels that alarm at once the one with the most evidence is named."""
        z = self._scores.hear(values, start_ns, stratum)
        self._trace.hear(self._scores.deviation)
        self._ring[self._heard % RING], self._starts[self._heard % RING] = z, start_ns
        self._heard += 1
        if not (alarmed := self._update(z)):
            return None
        finding = self._finding(alarmed)
        self.reset()
        return finding

    def gauges(self) -> dict[str, float]:
        """See the class."""
        _, evidence = _likeliest(self._last(self._ring))
        found = np.clip(evidence / -np.log(self._rates), 0.0, 1.0)
        return dict(zip(self._reference.names, found.tolist(), strict=True))

    def state(self) -> Arrays:
        """The last windows, as copies."""
        counts = np.array([self._scores.last_ns, self._trace.heard, self._heard], np.int64)
        return {name: array.copy() for name, array in self._arrays().items()} | {"counts": counts}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Play the last windows again. Raises ValueError when they are of another reference."""
        mine = self._arrays()
        if state.keys() != {*mine, "counts"} or any(state[name].shape != mine[name].shape for name in mine):
            raise ValueError("the state is of other channels")
        self.reset()
        for name, array in mine.items():
            array[:] = state[name]
        self._scores.last_ns, self._trace.heard, self._heard = (int(value) for value in state["counts"])
        for z in self._last(self._ring):
            self._update(z)

    def _arrays(self) -> Arrays:
        past = {"lags": self._scores.lags, "trace": self._trace.means}
        return {"ring": self._ring, "starts": self._starts, **past}

    def _last(self, ring: NDArray[Any]) -> NDArray[Any]:
        """What a ring holds, oldest first."""
        count = min(self._heard, RING)
        return ring[np.arange(self._heard - count, self._heard) % RING]

    def _update(self, z: Floats) -> list[int]:
        """Channels that alarm at the next scores (K,); NaN is no evidence."""
        known = np.flatnonzero(np.isfinite(z)).tolist()
        for channel in known:
            self._each[channel].update(float(z[channel]))
        return [channel for channel in known if self._each[channel].drift_detected]

    def _finding(self, alarmed: list[int]) -> Finding:
        scores, starts = self._last(self._ring), self._last(self._starts)
        place, evidence = _likeliest(scores)
        channel = max(alarmed, key=lambda each: float(evidence[each]))
        onset, since = int(starts[place[channel]]), scores[place[channel] :, channel]
        effect = moved(self._reference, channel, float(np.nanmean(since)))
        return Finding(self._reference.names[channel], onset, effect, self._trace.of(channel, len(since)))


def _likeliest(scores: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Where a shift of normal scores (n, K) began, and its log-likelihood against none; 0 where there is no score.

    >>> place, gain = _likeliest(np.array([[0.0], [0.0], [2.0], [np.nan], [2.0]]))
    >>> int(place[0]), float(gain[0])
    (2, 4.0)
    """
    if not len(scores):
        return np.zeros(scores.shape[1], np.intp), np.zeros(scores.shape[1])
    backwards = scores[::-1]
    sums = np.cumsum(np.nan_to_num(backwards), axis=0)
    gain = sums**2 / 2 / np.maximum(np.cumsum(np.isfinite(backwards), axis=0), 1)
    best = np.argmax(gain, axis=0)
    return len(scores) - 1 - best, gain.max(axis=0)


def adwin(reference: Reference, run_length: float, weights: Floats) -> PerChannel:
    """ADWIN (Bifet and Gavalda, 2007): its bound on an error is of one look, for independent values.

    `delta` lets it err once a budget if looks were independent too; it makes no promise of a run length.
    """
    make = _river().ADWIN
    return PerChannel(reference, run_length, weights, lambda rate: make(delta=min(1.0, CHECKED * rate), clock=CHECKED))


def page_hinkley(reference: Reference, run_length: float, weights: Floats) -> PerChannel:
    """Page-Hinkley (Page, 1954): one sum for each side, which knows shifts of the level only.

    Its threshold gives the budget's run length for independent normal scores whose mean is known (Siegmund's
    approximation); it learns the mean from the stream, and is not protected against a reference's errors.
    """
    make = _river().PageHinkley
    return PerChannel(
        reference,
        run_length,
        weights,
        lambda rate: make(delta=DRIFT, threshold=page_hinkley_threshold(2 / rate), alpha=1.0),
    )


def kswin(reference: Reference, run_length: float, weights: Floats) -> PerChannel:
    """KSWIN (Raab et al., 2020): a Kolmogorov-Smirnov test at each window, of recent scores against chosen older ones.

    `alpha` is the budget's share of one window; tests that overlap are no independent ones, and the older scores are
    drawn by chance, from a fixed seed.
    """
    make = _river().KSWIN
    return PerChannel(
        reference,
        run_length,
        weights,
        lambda rate: make(alpha=min(1.0, rate), window_size=KS_WINDOW, stat_size=KS_RECENT, seed=1),
    )


def page_hinkley_threshold(run_length: float) -> float:
    """Height at which one side's sum gives an alarm in `run_length` normal scores on average, by fixed point.

    >>> round(page_hinkley_threshold(1e4), 1)
    13.1
    """
    height = 0.0
    for _ in range(50):
        height = math.log1p(2 * DRIFT**2 * run_length + 2 * DRIFT * height) / (2 * DRIFT)
    return max(0.0, height - OVERSHOOT)


DETECTORS: dict[str, Factory] = {"e-detector": Detector, "adwin": adwin, "page-hinkley": page_hinkley, "kswin": kswin}


def chosen(name: str) -> Factory:
    """The row of DETECTORS, told at once when it cannot work here. Raises ConfigError."""
    if name not in DETECTORS:
        raise ConfigError("drift_detector", f"{name!r} is none of {', '.join(DETECTORS)}", "choose one of these")
    if DETECTORS[name] is not Detector:
        _river()
    return DETECTORS[name]


def _river() -> Any:
    try:
        from river import drift
    except ImportError as error:
        raise ConfigError("drift_detector", "river is not installed", "install lineside[evaluation]") from error
    return drift
