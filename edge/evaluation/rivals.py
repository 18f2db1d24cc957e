"""What a detector has to beat: trivial scores of a window, textbook detectors of strange windows, and of change.

The first two learn from the same commissioning windows and the same encoders as the device; the last hear the device's
own evidence, with their thresholds set in their own favour: as low as the recording's normal running allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lineside.conformal import Calibration
from lineside.errors import ConfigError

Floats = NDArray[np.float64]
BLOCK = 10  # windows: commissioning is dealt out in such blocks to what is fitted and what is calibrated
KEPT, EXPLAINED, PIXELS = 32, 0.95, 1024
MAD = 1.4826


@dataclass(frozen=True)
class Seen:
    """Windows of one sensor: `windows` (n, ...) as its encoder takes them, and the encoder's `features` (n, f)."""

    modality: str
    windows: NDArray[np.generic]
    features: NDArray[np.float32]

    def at(self, rows: NDArray[np.intp]) -> Seen:
        return Seen(self.modality, self.windows[rows], self.features[rows])


Score = Callable[[Seen], Floats]  # (n,): larger is stranger


def brightness(known: Seen) -> Score | None:
    """How far the picture's mean is from its usual one; None for what is no picture."""
    return _off(known, _mean) if known.modality == "camera" else None


def loudness(known: Seen) -> Score | None:
    """How far the level is from its usual one: mean ln power of a sound, ln deviation of a series about its means."""
    if known.modality == "camera":
        return None
    return _off(known, _mean if known.modality == "microphone" else _deviation)


def pca(known: Seen) -> Score:
    """What is left of a window (pooled to PIXELS numbers) outside the axes that explain normal ones."""
    rows = _pooled(known)
    mean = rows.mean(axis=0)
    _, spread, axes = np.linalg.svd(rows - mean, full_matrices=False)
    share = np.cumsum(spread**2) / max(float((spread**2).sum()), 1e-12)
    kept = axes[: min(KEPT, max(1, len(rows) // 4), int(np.searchsorted(share, EXPLAINED)) + 1)]

    def score(seen: Seen) -> Floats:
        off = _pooled(seen) - mean
        return np.asarray(np.linalg.norm(off - off @ kept.T @ kept, axis=1))

    return score


def hotelling(known: Seen) -> Score:
    """Hotelling's T2 of the features along the axes that explain normal ones."""
    rows = known.features.astype(np.float64)
    mean = rows.mean(axis=0)
    _, spread, axes = np.linalg.svd(rows - mean, full_matrices=False)
    kept = max(1, min(KEPT, len(rows) // 4, int((spread > 1e-6 * spread[0]).sum())))
    scale = spread[:kept] / np.sqrt(len(rows) - 1)
    return lambda seen: np.asarray(((((seen.features - mean) @ axes[:kept].T) / scale) ** 2).sum(axis=1))


def isolation_forest(known: Seen) -> Score:
    """scikit-learn's isolation forest on the features."""
    forest = needed("sklearn.ensemble").IsolationForest(random_state=0).fit(known.features)
    return lambda seen: np.asarray(-forest.score_samples(seen.features), np.float64)


RIVALS: dict[str, Callable[[Seen], Score | None]] = {
    "brightness": brightness,
    "loudness": loudness,
    "PCA": pca,
    "Hotelling T²": hotelling,
    "isolation forest": isolation_forest,
}


def evidence(
    rival: Callable[[Seen], Score | None], known: Mapping[str, Seen], seen: Mapping[str, Seen]
) -> Floats | None:
    """A rival's evidence (n,) for moments, the sum over its sensors of -ln p; None where it has no say in any sensor.

    `known` and `seen` have, by sensor, the same number of rows each. The p-values are conformal, as the device's.
    """
    total: list[Floats] = []
    for sensor, normal in known.items():
        turn = np.arange(len(normal.windows)) // BLOCK % 2
        if (score := rival(normal.at(np.flatnonzero(turn == 0)))) is not None:
            calibration = Calibration.fit(score(normal.at(np.flatnonzero(turn == 1))))
            total.append(np.array([calibration.evidence(float(value)) for value in score(seen[sensor])]))
    return np.sum(total, axis=0) if total else None


class Change(Protocol):
    """A detector of change as river has them: `update` takes the next value, `drift_detected` tells of this one."""

    drift_detected: bool

    def update(self, x: float) -> Any: ...


def needed(module: str) -> Any:
    """A module of the extra `evaluation`. Raises ConfigError saying how to get it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError("--evaluate", f"needs {error.name}", "install lineside[evaluation]") from error


def adwin(strictness: int) -> Change:
    return needed("river.drift").ADWIN(delta=10.0**-strictness)  # type: ignore[no-any-return]


def page_hinkley(strictness: int) -> Change:
    return needed("river.drift").PageHinkley(threshold=2.0**strictness, delta=0.25)  # type: ignore[no-any-return]


def kswin(strictness: int) -> Change:
    return needed("river.drift").KSWIN(alpha=10.0**-strictness, seed=1)  # type: ignore[no-any-return]


CHANGES: dict[str, Callable[[int], Change]] = {"ADWIN": adwin, "Page-Hinkley": page_hinkley, "KSWIN": kswin}
STRICTNESS = range(1, 16)


def tuned(
    make: Callable[[int], Change], values: Floats, watched: NDArray[np.bool_], allowed: int
) -> tuple[int, list[int]]:
    """The least strict setting that alarms at most `allowed` times where `watched` (n,), and its alarms' places.

    The strictest one where none keeps to it. Values (n,) are given in standard deviations of the watched ones.
    """
    level, spread = float(values[watched].mean()), float(values[watched].std()) or 1.0
    told: list[int] = []
    for strictness in STRICTNESS:
        told = alarms(make(strictness), (values - level) / spread)
        if sum(bool(watched[place]) for place in told) <= allowed:
            return strictness, told
    return STRICTNESS[-1], told


def alarms(detector: Change, values: Iterable[float]) -> list[int]:
    """Places at which a detector tells of a change."""
    found = []
    for place, value in enumerate(values):
        detector.update(float(value))
        if detector.drift_detected:
            found.append(place)
    return found


def _off(known: Seen, level: Callable[[NDArray[np.generic]], Floats]) -> Score:
    """Distance of a window's level from the usual one, in robust standard deviations."""
    levels = level(known.windows)
    usual = float(np.median(levels))
    scale = max(MAD * float(np.median(np.abs(levels - usual))), 1e-9)
    return lambda seen: np.abs(level(seen.windows) - usual) / scale


def _mean(windows: NDArray[np.generic]) -> Floats:
    return np.asarray(windows.reshape(len(windows), -1).mean(axis=1, dtype=np.float64))


def _deviation(windows: NDArray[np.generic]) -> Floats:
    spread = windows.astype(np.float64).std(axis=-1)  # of each channel: its level may be a mere tilt
    return np.asarray(np.log(np.sqrt((spread**2).reshape(len(windows), -1).mean(axis=1)) + 1e-9))


def _pooled(seen: Seen) -> Floats:
    """Windows (n, <= about PIXELS) as means of neighbouring numbers."""
    flat = seen.windows.reshape(len(seen.windows), -1).astype(np.float64)
    size = -(-flat.shape[1] // PIXELS)
    edges: Sequence[int] = range(0, flat.shape[1], size)
    return np.asarray(np.add.reduceat(flat, edges, axis=1) / size)
