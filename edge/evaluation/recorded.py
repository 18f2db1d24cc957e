"""A labelled recording through the device's pipeline: how well its faults are seen, beside rivals on the same."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge import triage
from edge.commissioning import Commissioning, encode
from edge.config import DeviceConfig
from edge.ensemble import Ensemble
from edge.evaluation import rivals
from edge.evaluation.section import Cell, Plot, Section, Table
from edge.faults import FAULTS
from edge.pipeline import Pipeline
from lineside.clock import NS
from lineside.errors import RecordingError
from lineside.messages import Alarm, Message, Score
from lineside.metrics import auroc, rate_upper
from lineside.recording import Label
from lineside.windows import Samples

DAY_NS = 86_400 * NS


@dataclass(frozen=True)
class Judged:
    """One moment as the device judged it, with the windows it judged by; `truth` is the fault's label.

    "" is normal running; None a moment that is partly one and partly the other, or partly another fault.
    """

    start_ns: int
    end_ns: int
    truth: str | None
    seen: triage.Seen
    score: Score


@dataclass(frozen=True)
class Run:
    """All that came out of one recording."""

    moments: list[Judged]
    alarms: list[Alarm]
    faults: list[Label]
    hop_ns: int


def run(config: DeviceConfig, pipeline: Pipeline, stream: Iterable[Samples], labels: Sequence[Label]) -> Run:
    """Judge a stream; `pipeline` has its ensemble. Raises RecordingError when not a moment of it could be judged."""
    faults = joined(labels)
    moments: list[Judged] = []
    alarms: list[Alarm] = []

    def take(messages: list[Message]) -> None:
        scores = [message for message in messages if isinstance(message, Score)]
        alarms.extend(message for message in messages if isinstance(message, Alarm))
        # the pipeline keeps its last moments; one run of samples leads to fewer
        for score, seen in zip(scores, list(pipeline.recent)[-len(scores) :] if scores else [], strict=True):
            moments.append(
                Judged(score.start_ns, score.end_ns, truth(faults, score.start_ns, score.end_ns), seen, score)
            )

    for samples in stream:
        for piece in _pieces(samples, pipeline.window_ns):
            take(pipeline.push(piece))
    take(pipeline.flush())
    if not moments:
        raise RecordingError(
            "recording", "not one moment of it could be judged", "see what `lineside edge replay` says"
        )
    return Run(moments, alarms, faults, round(config.windows.hop_s * NS))


def joined(labels: Sequence[Label]) -> list[Label]:
    """The labels of faults, by start; of one kind that follow each other without a pause, as one."""
    found: list[Label] = []
    for label in sorted((label for label in labels if label.fault), key=lambda label: label.start_ns):
        if found and label.label == found[-1].label and label.start_ns <= found[-1].end_ns:
            found[-1] = msgspec.structs.replace(found[-1], end_ns=max(found[-1].end_ns, label.end_ns))
        else:
            found.append(label)
    return found


def truth(faults: Sequence[Label], start_ns: int, end_ns: int) -> str | None:
    """What the labels say of an interval; see Judged."""
    touching = [label for label in faults if label.start_ns < end_ns and label.end_ns > start_ns]
    if not touching:
        return ""
    inside = [label for label in touching if label.start_ns <= start_ns and label.end_ns >= end_ns]
    return inside[0].label if len(touching) == len(inside) == 1 else None


def evaluate(found: Run, config: DeviceConfig, ensemble: Ensemble, known: Commissioning, title: str) -> Section:
    """All that can be said of the run of a labelled recording; `known` is what its device was commissioned on."""
    budget = config.alarm.false_alarm_days
    return Section(
        title,
        f"{len(found.moments)} moments, hop {found.hop_ns / NS:g} s; {len(found.faults)} labelled faults; commissioned "
        f"on {len(known.moments)} moments; budget of one false alarm in {budget:g} days.",
        tables=[
            strange(found, ensemble, known),
            false_alarms(found, budget),
            *(each for each in (delays(found), causes(found)) if each.rows),
        ],
        plots=[_course(found, config)],
    )


def strange(found: Run, ensemble: Ensemble, known: Commissioning) -> Table:
    """AUROC of moments with a fault against those without, by kind: fused, by sensor alone, and every rival's."""
    scores = {"fused": np.array([moment.score.evidence for moment in found.moments])}
    for sensor in known.modalities:
        scores[f"{sensor} alone"] = np.array([moment.seen.single.get(sensor, np.nan) for moment in found.moments])
    whole, seen, normal = _everywhere(found, ensemble, known)
    for name, rival in rivals.RIVALS.items():
        if normal and (theirs := rivals.evidence(rival, normal, seen)) is not None:
            scores[name] = np.full(len(found.moments), np.nan)
            scores[name][whole] = theirs
    kinds = sorted({moment.truth for moment in found.moments if moment.truth})
    truths = np.array([moment.truth if moment.truth is not None else "?" for moment in found.moments])
    rows: list[tuple[Cell, ...]] = []
    for kind in kinds:
        areas = [_area(value, truths == "", truths == kind) for value in scores.values()]
        rows.append((kind, int((truths == kind).sum()), *areas))
    areas_of = np.array([row[2:] for row in rows], np.float64).reshape(len(rows), len(scores))
    if len(judged := areas_of[np.isfinite(areas_of).all(axis=1)]) > 1:
        rows.append((f"mean of {len(judged)} that all can judge", None, *judged.mean(axis=0).tolist()))
    told = (
        f"AUROC against the {int((truths == '').sum())} moments of normal running (1 is best, 0.5 is chance). A sensor "
        f"that a health rule flags is out of the fusion, so that what it shows is in no AUROC: –."
    )
    return Table(told, ("fault", "moments", *scores), rows)


def false_alarms(found: Run, budget_days: float) -> Table:
    """Alarms in normal running per day, with what the rate is at most (95 %), beside the budget."""
    days = sum(moment.truth == "" for moment in found.moments) * found.hop_ns / DAY_NS
    rows: list[tuple[Cell, ...]] = []
    for kind in ("anomaly", "drift", "sensor"):
        count = sum(alarm.kind == kind and not _excused(found, alarm) for alarm in raised(found))
        rows.append((kind, count, count / days, rate_upper(count, days), 1 / budget_days if kind != "sensor" else None))
    told = f"False alarms in {days * 24:.2f} h of normal running."
    return Table(told, ("alarm", "count", "per day", "at most (95 %)", "budget per day"), rows)


def delays(found: Run) -> Table:
    """Windows from the beginning of each fault to the first alarm, ours and of detectors of change on our evidence."""
    values = np.array([moment.score.evidence for moment in found.moments])
    starts = np.array([moment.start_ns for moment in found.moments])
    watched = np.array([moment.truth == "" and not _after_fault(found, moment.start_ns) for moment in found.moments])
    allowed = sum(alarm.kind != "sensor" and not _excused(found, alarm) for alarm in raised(found))
    theirs: dict[str, list[int]] = {}
    if watched.any() and found.faults:
        theirs = {name: rivals.tuned(make, values, watched, allowed)[1] for name, make in rivals.CHANGES.items()}
    rows: list[tuple[Cell, ...]] = []
    for fault in found.faults:
        ours = [alarm.time_ns for alarm in raised(found) if fault.start_ns <= alarm.time_ns <= fault.end_ns + GRACE_NS]
        late: list[float | None] = [(min(ours) - fault.start_ns) / found.hop_ns if ours else None]
        for places in theirs.values():
            heard = [int(starts[place]) for place in places if fault.start_ns <= starts[place] <= fault.end_ns]
            late.append((min(heard) - fault.start_ns) / found.hop_ns + 1 if heard else None)
        rows.append((fault.label, (fault.end_ns - fault.start_ns) / NS, *late))
    told = (
        f"Windows from a fault's beginning to the first alarm; empty: none. The detectors of change are as sensitive "
        f"as this very normal running allows with {allowed} false alarms, as many as the device had: a threshold in "
        f"their favour, that promises nothing about any other hour. The device's is for its budget."
    )
    return Table(told, ("fault", "lasts s", "device", *theirs), rows)


def causes(found: Run) -> Table:
    """Which cause alarms name, for faults whose cause is known (edge.faults)."""
    counts: dict[str, Counter[str]] = {}
    for fault, alarm in itertools.product(found.faults, raised(found)):
        if fault.label in FAULTS and fault.start_ns <= alarm.time_ns <= fault.end_ns + GRACE_NS:
            counts.setdefault(fault.label, Counter())[alarm.cause or "undecided"] += 1
    rows = [(k, FAULTS[k].cause, n["sensor"], n["process"], n["undecided"]) for k, n in sorted(counts.items())]
    return Table("Who is blamed, in alarms.", ("fault", "at fault", "sensor", "process", "undecided"), list(rows))


GRACE_NS = 10 * NS  # an alarm that comes so soon after a fault is still of it


def raised(found: Run) -> list[Alarm]:
    """The alarms that were raised."""
    return [alarm for alarm in found.alarms if alarm.state == "raised"]


def _excused(found: Run, alarm: Alarm) -> bool:
    return any(fault.start_ns <= alarm.time_ns <= fault.end_ns + GRACE_NS for fault in found.faults)


def _after_fault(found: Run, at_ns: int) -> bool:
    return any(fault.end_ns <= at_ns <= fault.end_ns + GRACE_NS for fault in found.faults)


def _pieces(samples: Samples, length_ns: int) -> Iterable[Samples]:
    """The samples in runs of at most `length_ns`."""
    if samples.end_ns - samples.start_ns <= length_ns:
        yield samples
        return
    for start in range(samples.start_ns, samples.end_ns, length_ns):
        if len((piece := samples.between(start, start + length_ns)).data):
            yield piece


def _everywhere(
    found: Run, ensemble: Ensemble, known: Commissioning
) -> tuple[NDArray[np.intp], dict[str, rivals.Seen], dict[str, rivals.Seen]]:
    """Places of the moments in which all sensors are, their windows, and those of commissioning likewise."""
    sensors = {name: modality for name, modality in known.modalities.items() if modality in ensemble.encoders}
    whole = np.array([i for i, m in enumerate(found.moments) if m.seen.windows.keys() >= sensors.keys()], np.intp)
    learned = [moment for moment in known.moments if moment.keys() >= sensors.keys()]
    if not len(whole) or len(learned) < 2 * rivals.BLOCK:
        return np.zeros(0, np.intp), {}, {}
    judged = [found.moments[i].seen.windows for i in whole]
    seen = {name: _of(ensemble, modality, [m[name] for m in judged]) for name, modality in sensors.items()}
    normal = {name: _of(ensemble, modality, [m[name] for m in learned]) for name, modality in sensors.items()}
    return whole, seen, normal


def _of(ensemble: Ensemble, modality: str, windows: Sequence[NDArray[np.generic]]) -> rivals.Seen:
    return rivals.Seen(modality, np.stack(windows), encode(ensemble.encoders[modality], windows).features)


def _area(score: NDArray[np.float64], normal: NDArray[np.bool_], faulty: NDArray[np.bool_]) -> float:
    known = np.isfinite(score)
    return auroc(score[normal & known], score[faulty & known])


def _course(found: Run, config: DeviceConfig) -> Plot:
    start = found.moments[0].start_ns
    seconds = np.array([(moment.end_ns - start) / NS for moment in found.moments])
    strength = -np.log10(np.array([moment.score.p_value for moment in found.moments]))
    marks: Mapping[str, float] = {f"{fault.label} begins": (fault.start_ns - start) / NS for fault in found.faults[:8]}
    return Plot(
        "evidence of the moments",
        "seconds",
        "-log10 p",
        {"fused": (seconds, strength)},
        dict(marks),
        {"p_limit": -float(np.log10(config.alarm.p_limit))},
    )
