"""Moments of commissioning, healthy and with faults rehearsed on them, judged by normal running of other times.

A normal that knows the healthy twin of a faulty moment would take the fault for nearer to normal than it is; one that
knows a healthy moment finds nothing strange in it. So the moments are dealt out to folds in blocks of time, and each
fold is judged, as a device judges, by what the others say is normal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.commissioning import Commissioning, encode
from edge.encoder import Encoder
from edge.ensemble import Ensemble
from edge.rehearsal import Trial
from lineside.errors import LinesideError
from lineside.fusion import BLOCK, FOLDS, MIN_MOMENTS, Encoded, Normal

Rows = NDArray[np.intp]
Judged = dict[frozenset[str], tuple[float, float]]


@dataclass(frozen=True)
class Checked:
    """One trial (of kind "" for a healthy moment): evidence and p-value by subset of the sensors that have no flag.

    `present` are the sensors of the moment before the fault.
    """

    trial: Trial
    present: frozenset[str]
    judged: Judged


def cross_checked(commissioning: Commissioning, ensemble: Ensemble, coreset: int) -> list[Checked]:
    """Every moment, and every trial on one, judged by a normal of at most `coreset` windows that knows neither.

    A sensor with too few windows to learn normal without a fold is left out, and so is a state where all have too few.
    Raises LinesideError when that leaves nothing.
    """
    encoded = commissioning.encoded(ensemble.encoders)
    row = {start_ns: i for i, start_ns in enumerate(commissioning.start_ns[: len(commissioning.moments)])}
    trials = [Trial("", start_ns, {}, {}) for start_ns in row]
    trials += [trial for trial in commissioning.faulty if trial.start_ns in row]
    struck = _struck(trials, commissioning.modalities, ensemble.encoders)
    checked = []
    for mine, known, normal in _folds(_groups(commissioning, ensemble), encoded, coreset):
        for trial, changed in zip(trials, struck, strict=True):
            if row[trial.start_ns] in mine:
                healthy = _moment(known, row[trial.start_ns])
                now = {name: changed.get(name, one) for name, one in healthy.items() if name not in trial.flags}
                checked.append(Checked(trial, frozenset(healthy), _judged(normal, now)))
    if not checked:
        reason = f"without a quarter of normal running no sensor has the {MIN_MOMENTS} windows that are needed"
        raise LinesideError("contract", reason, f"commission on {2 * MIN_MOMENTS} moments or more")
    return checked


def _groups(commissioning: Commissioning, ensemble: Ensemble) -> list[Rows]:
    """Moments that are judged by one normal: those of each state that was learned, else all."""
    if not ensemble.states:
        return [np.arange(len(commissioning.moments))]
    return [np.flatnonzero([one == state for one in commissioning.states]) for state in ensemble.states]


def _parts(rows: Rows) -> Iterator[tuple[Rows, Rows]]:
    """The moments of each fold, and those of the others."""
    fold = np.arange(len(rows)) // BLOCK % FOLDS
    for k in range(FOLDS):
        yield rows[fold == k], rows[fold != k]


def _folds(
    groups: Sequence[Rows], encoded: Mapping[str, Encoded], coreset: int
) -> Iterator[tuple[frozenset[int], dict[str, Encoded], Normal]]:
    """Each fold of moments, with the sensors and normal running that the other folds know well enough.

    They are fewer moments, so that the coreset is as much smaller.
    """
    size = max(1, round(coreset * (1 - 1 / FOLDS)))
    for rows in groups:
        parts = list(_parts(rows))
        known = {
            sensor: both
            for sensor, both in encoded.items()
            if min(int(np.isfinite(both.features[others]).all(axis=1).sum()) for _, others in parts) >= MIN_MOMENTS
        }
        for mine, others in parts if known else ():
            rest = {sensor: both.at(others) for sensor, both in known.items()}
            yield frozenset(mine.tolist()), known, Normal.fit(rest, size)


def _moment(encoded: Mapping[str, Encoded], row: int) -> dict[str, Encoded]:
    """One healthy moment of the sensors that were there."""
    each = {sensor: both.at(row) for sensor, both in encoded.items()}
    return {sensor: one for sensor, one in each.items() if np.isfinite(one.features).all()}


def _struck(
    trials: Sequence[Trial], modalities: Mapping[str, str], encoders: Mapping[str, Encoder]
) -> list[dict[str, Encoded]]:
    """What the encoders make of the windows that each trial changed, by sensor."""
    found: list[dict[str, Encoded]] = [{} for _ in trials]
    for sensor, modality in modalities.items():
        places = [i for i, trial in enumerate(trials) if sensor in trial.windows]
        if modality in encoders and places:
            made = encode(encoders[modality], [trials[i].windows[sensor] for i in places])
            for row, i in enumerate(places):
                found[i][sensor] = made.at(row)
    return found


def _judged(normal: Normal, moment: Mapping[str, Encoded]) -> Judged:
    """Every subset of a moment's sensors that has a calibration, from the one judgement of them all."""
    if (whole := normal.judge(moment)) is None:
        return {}
    judged = {}
    for members, calibration in normal.fused.items():
        if members <= moment.keys():
            inside = [evidence for pair, evidence in whole.pair.items() if members.issuperset(pair.split("+"))]
            evidence = sum(whole.single[name] for name in members) + sum(inside)
            judged[members] = evidence, calibration.p_value(evidence)
    return judged
