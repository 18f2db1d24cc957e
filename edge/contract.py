"""The degradation contract: which faults a device sees, how surely and how soon, with each subset of its sensors.

Measured on faults that were rehearsed during commissioning (edge.rehearsal), with the encoders in use and the device's
own judgement (edge.crosscheck) and alarms (edge.delay). The faults are stand-ins laid over the device's own windows: a
contract says what is left when a sensor is away, and not how a real bearing will sound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.commissioning import Commissioning
from edge.config import DeviceConfig
from edge.crosscheck import Checked, cross_checked
from edge.delay import By, delay
from edge.ensemble import Ensemble
from edge.faults import FAULTS
from lineside.errors import LinesideError
from lineside.metrics import auroc

Z95 = 1.96


class Sight(msgspec.Struct, frozen=True):
    """How one subset of sensors sees one kind of fault, a few seconds (rehearsal.AGE_S) after it began.

    `moments` were tried; in `flagged` of them (a share) a health rule takes a struck sensor out. Of the others: `auroc`
    against normal moments with its 95 % interval `low`..`high`, and `strange`, the share with a p-value at or below the
    alarm's limit; None where none is left. `windows` and `by` are of edge.delay.
    """

    moments: int
    flagged: float = 0.0
    auroc: float | None = None
    low: float | None = None
    high: float | None = None
    strange: float | None = None
    windows: float | None = None
    by: By = ""


class Contract(msgspec.Struct, frozen=True):
    """What each subset of sensors sees of each kind of fault: None where the fault does not reach its sensors.

    `subsets` is keyed by names joined with `+`, the largest first, then by kind; `causes` tells by kind whether it is a
    fault of the sensor or of the process. The rest is what it was measured with: `moments` of normal running.
    """

    moments: int
    causes: dict[str, str]
    subsets: dict[str, dict[str, Sight | None]]
    versions: dict[str, str]
    commissioned_ns: int
    p_limit: float
    hop_s: float


def measure(ensemble: Ensemble, commissioning: Commissioning, config: DeviceConfig) -> Contract:
    """The contract of an ensemble that was made of this commissioning.

    Raises LinesideError when no fault was rehearsed, or normal running is too short to be judged by parts of itself.
    """
    if not any(trial.kind in FAULTS for trial in commissioning.faulty):
        reason = "no fault was rehearsed: none is known for these sensors, or an older version commissioned them"
        raise LinesideError("contract", reason, "commission again, with a camera or a microphone")
    checked = cross_checked(commissioning, ensemble, config.commissioning.coreset)
    normal = [one for one in checked if not one.trial.kind]
    tried = {kind: [one for one in checked if one.trial.kind == kind] for kind in FAULTS}
    subsets: dict[str, dict[str, Sight | None]] = {}
    for members in sorted({m for one in normal for m in one.judged}, key=lambda m: (-len(m), sorted(m))):
        usual = np.array([one.judged[members][0] for one in normal if members in one.judged])
        watched = {commissioning.modalities[sensor] for sensor in members}
        subsets["+".join(sorted(members))] = {
            kind: _sight(members, usual, trials, config) if watched & FAULTS[kind].effects.keys() else None
            for kind, trials in tried.items()
            if trials
        }
    return Contract(
        moments=len(normal),
        causes={kind: FAULTS[kind].cause for kind, trials in tried.items() if trials},
        subsets=subsets,
        versions=ensemble.versions,
        commissioned_ns=ensemble.commissioned_ns,
        p_limit=config.alarm.p_limit,
        hop_s=config.windows.hop_s,
    )


def _sight(
    members: frozenset[str], usual: NDArray[np.float64], trials: Sequence[Checked], config: DeviceConfig
) -> Sight:
    """What `members` alone would have made of these trials; `usual` is their evidence of normal moments."""
    rows = []
    for one in trials:
        left = members.difference(one.trial.flags)
        judged = one.judged.get(left)
        if members <= one.present and members & one.trial.struck and (judged or left != members):
            rows.append((left != members, *(judged or (math.nan, 1.0))))
    if not rows:
        return Sight(moments=0)
    flagged, evidence, p_values = (np.array(column) for column in zip(*rows, strict=True))
    found = delay(p_values, flagged, config)
    sight = Sight(len(rows), float(flagged.mean()), windows=found.windows, by=found.by)
    if flagged.all():
        return sight
    area = auroc(usual, evidence[~flagged])
    low, high = interval(area, min(len(usual), int((~flagged).sum())))
    strange = float((p_values[~flagged] <= config.alarm.p_limit).mean())
    return msgspec.structs.replace(sight, auroc=area, low=low, high=high, strange=strange)


def interval(area: float, n: int) -> tuple[float, float]:
    """A 95 % interval of an AUROC, where the smaller of both samples has `n` >= 1 scores.

    Wilson's interval of a share of n: the variance of an AUROC is at most area * (1 - area) / n (Birnbaum and Klose,
    1957), so that it is wide enough, and of ten moments that are all seen it does not say that all ever will be.

    >>> low, high = interval(1.0, 10)
    >>> round(low, 2), high
    (0.72, 1.0)
    """
    centre = (area + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(area * (1 - area) / n + Z95**2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


# ---- told


def to_json(contract: Contract) -> bytes:
    """The contract as the file `contract.json` of a device."""
    return msgspec.json.format(msgspec.json.encode(contract), indent=1)


def from_json(data: bytes) -> Contract:
    """What `to_json` wrote. Raises LinesideError when it is damaged."""
    try:
        return msgspec.json.decode(data, type=Contract)
    except msgspec.DecodeError as error:
        raise LinesideError("contract", f"it cannot be read ({error})", "commission again") from error


def told(contract: Contract) -> str:
    """A table of what all sensors see and what is left without each one, then a sentence for every subset."""
    whole = _whole(contract)
    columns = [key for key in contract.subsets if len(_names(key)) >= len(whole) - 1]
    rows = [["fault", "moments", *(_label(key, whole) for key in columns)]]
    for kind in contract.causes:
        sights = [contract.subsets[key][kind] for key in columns]
        most = max((sight.moments for sight in sights if sight), default=0)
        rows.append([kind, str(most), *(_cell(sight) for sight in sights)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    note = "AUROC (95 %) and windows until the alarm, ! by a health rule; -: does not reach them"
    return "\n".join([*lines, note, *summary(contract)])


def summary(contract: Contract) -> list[str]:
    """For each subset of sensors how well process faults are seen, beside how well all sensors see the same ones."""
    whole, lines = _whole(contract), []
    best = contract.subsets.get("+".join(whole), {})
    for key, sights in contract.subsets.items():
        process = [kind for kind, cause in contract.causes.items() if cause == "process"]
        seen = {kind: s.auroc for kind in process if (s := sights[kind]) is not None and s.auroc is not None}
        line = f"{_label(key, whole)}: "
        line += (
            f"mean AUROC {np.mean(list(seen.values())):.2f} of {len(seen)} process faults" if seen else "none judged"
        )
        same = [s.auroc for kind in seen if (s := best.get(kind)) is not None and s.auroc is not None]
        if sights is not best and same:
            line += f" (all sensors: {np.mean(same):.2f})"
        blind = [kind for kind in process if sights[kind] is None]
        lines.append(line + (f"; {', '.join(blind)} cannot be seen" if blind else ""))
    return lines


def left(contract: Contract, out: Sequence[str]) -> str:
    """What is still seen while the sensors `out` are away, as `summary` tells it; empty where it was not measured."""
    whole = _whole(contract)
    start = f"{_label('+'.join(name for name in whole if name not in out), whole)}: "
    return next((line.removeprefix(start) for line in summary(contract) if line.startswith(start)), "")


def _whole(contract: Contract) -> list[str]:
    """All sensors."""
    return sorted({name for key in contract.subsets for name in _names(key)})


def _names(key: str) -> list[str]:
    return key.split("+")


def _label(key: str, whole: Sequence[str]) -> str:
    """
    >>> _label("cam0", ["cam0", "mic0"]), _label("cam0+mic0", ["cam0", "mic0"])
    ('without mic0', 'all sensors')
    """
    gone = [name for name in whole if name not in _names(key)]
    return f"without {', '.join(gone)}" if gone else "all sensors"


def _cell(sight: Sight | None) -> str:
    if sight is None:
        return "-"
    if not sight.moments:
        return "not tried"
    area = "" if sight.auroc is None else f"{sight.auroc:.2f} ({sight.low:.2f}-{sight.high:.2f}) "
    soon = "never" if sight.windows is None else f"{sight.windows:.0f}{'!' if sight.by == 'health' else ''}"
    return area + soon
