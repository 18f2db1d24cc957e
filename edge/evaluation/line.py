"""The simulated line, fault by fault, through the device's own pipeline: who is blamed, and after how many windows.

Each fault begins after LEAD_S of well running, in runs of the line that differ by their seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from edge import triage
from edge.config import DeviceConfig, DeviceSettings, Modality, SensorSettings
from edge.ensemble import Ensemble
from edge.evaluation.section import Cell, Goal, Section, Table
from edge.faults import FAULTS, Injector
from edge.pipeline import Pipeline
from edge.replay import simulated
from lineside.clock import NS
from lineside.messages import Alarm

SENSORS: dict[str, Modality] = {"cam0": "camera", "mic0": "microphone"}
CHOSEN_ON = (
    *("bearing_noise", "misaligned_part", "slow_motor", "dirty_lens", "gain_loss", "black", "mains_hum"),
    *("rolling_bands", "crackling", "water_drop"),
)
HARD = ("black", "frozen", "muted")
START_NS = 1_700_000_000 * NS
LEAD_S, RUN_S, NORMAL_S = 5, 40, 600
OTHER = "another sensor"  # blamed, where a sensor is at fault


@dataclass(frozen=True)
class Run:
    """One run of the line with a fault (`kind` is empty for a well one).

    `cause` is what the first alarm names (empty: there was none), `by_evidence` what it would by evidence alone;
    `windows` that lay wholly in the fault came until that alarm, its own one among them. `alarms` counts all that
    were raised in `seconds`, of a run without a fault.
    """

    kind: str
    cause: str = ""
    by_evidence: str = ""
    windows: float = math.inf
    alarms: int = 0
    seconds: float = 0.0


def config(seed: int) -> DeviceConfig:
    """A device with a camera and a microphone on the simulated line's run of this seed."""
    sensors = [SensorSettings(name=n, modality=m, source="simulation", seed=seed) for n, m in SENSORS.items()]
    return DeviceConfig(device=DeviceSettings(id="bench", site="bench", station="press"), sensors=sensors)


def confusion(
    ensemble: Ensemble,
    seeds: Sequence[int],
    kinds: Sequence[str] = tuple(FAULTS),
    run_s: float = RUN_S,
    normal_s: float = NORMAL_S,
    workers: int = 1,
) -> Section:
    """What a commissioned device says of each kind of fault in a run of each seed, and of well running.

    A kind that raises no alarm blames nobody: it is in no share, and named. With `workers` above 1 as many processes
    share the seeds; the result is the same.
    """
    asked = [(seed, tuple(kinds), run_s, normal_s) for seed in seeds]
    if workers > 1:  # forked, so that they have the encoders without loading them again
        with ProcessPoolExecutor(workers, get_context("fork"), _keep, (ensemble,)) as pool:
            found = [run for runs in pool.map(_kept, *zip(*asked, strict=True)) for run in runs]
    else:
        found = [run for one in asked for run in of_seed(ensemble, *one)]
    return section(found, run_s)


_ensemble: list[Ensemble] = []  # of a forked worker


def _keep(ensemble: Ensemble) -> None:
    _ensemble[:] = [ensemble]


def _kept(seed: int, kinds: Sequence[str], run_s: float, normal_s: float) -> list[Run]:
    return of_seed(_ensemble[0], seed, kinds, run_s, normal_s)


def of_seed(ensemble: Ensemble, seed: int, kinds: Sequence[str], run_s: float, normal_s: float) -> list[Run]:
    """A well run of this seed, and one with each kind of fault."""
    return [well(ensemble, seed, normal_s), *(with_fault(ensemble, kind, seed, run_s) for kind in kinds)]


def well(ensemble: Ensemble, seed: int, seconds: float) -> Run:
    """Well running, for its false alarms."""
    raised = list(_alarms(ensemble, seed, seconds))
    return Run("", alarms=len(raised), seconds=seconds)


def with_fault(ensemble: Ensemble, kind: str, seed: int, seconds: float) -> Run:
    """LEAD_S of well running, then at most `seconds` of the fault, up to the first alarm that is raised in it."""
    begin_ns = _begin_ns(seed) + LEAD_S * NS
    for alarm, pipeline in _alarms(ensemble, seed, LEAD_S + seconds, kind, begin_ns):
        if alarm.time_ns <= begin_ns:
            continue
        windows = config(seed).windows
        whole = 1 + (alarm.time_ns - begin_ns - windows.length_s * NS) / (windows.hop_s * NS)
        evidence = "sensor" if alarm.kind == "sensor" else _by_evidence(pipeline)
        return Run(kind, named(alarm, kind), evidence, max(0.0, whole))
    return Run(kind)


def _begin_ns(seed: int) -> int:
    return START_NS + seed * 977 * NS


def _alarms(
    ensemble: Ensemble, seed: int, seconds: float, kind: str = "", begin_ns: int = 0
) -> Iterator[tuple[Alarm, Pipeline]]:
    """Alarms as they are raised, with the pipeline as it is then; `kind` is laid over all from `begin_ns` on."""
    pipeline, injector = Pipeline(config(seed)), Injector()
    pipeline.ensemble = ensemble
    for samples in simulated(config(seed), Path(), _begin_ns(seed), seconds):
        if kind and samples.start_ns >= begin_ns:
            injector.start(kind, begin_ns + 86_400 * NS)
        for message in pipeline.push(injector.apply(samples)):
            if isinstance(message, Alarm) and message.state == "raised":
                yield message, pipeline


def named(alarm: Alarm, kind: str) -> str:
    """The cause that an alarm names; OTHER where it blames a sensor beside the one that the fault is of."""
    if alarm.cause != "sensor" or FAULTS[kind].cause != "sensor":
        return alarm.cause
    struck = [name for name, modality in SENSORS.items() if modality in FAULTS[kind].effects]
    right = any(alarm.subject == name or f"(cause: {name} itself" in alarm.text for name in struck)
    return "sensor" if right else OTHER


def _by_evidence(pipeline: Pipeline) -> str:
    """The hypothesis of the product's words for the moments before the alarm."""
    recent = pipeline.recent
    names = {name for moment in recent for name in moment.single}
    strange = [name for name in names if np.median([m.single.get(name, 0.0) for m in recent]) >= triage.STRANGE]
    if len(strange) != 1:
        return "process" if strange else "undecided"
    return triage.by_agreement(recent, strange[0]).cause


# ---- what the runs say


def section(runs: Sequence[Run], run_s: float) -> Section:
    """The matrix of these runs, the shares that are right, delays, and false alarms."""
    kinds = [kind for kind in dict.fromkeys(run.kind for run in runs) if kind]
    held_out = [kind for kind in kinds if kind not in CHOSEN_ON]
    normal = [run for run in runs if not run.kind]
    days = sum(run.seconds for run in normal) / 86_400
    goals = [Goal(f"cause right, of alarms of {len(held_out)} kinds held out", _share(runs, held_out), least=0.95)]
    goals += [
        Goal(f"windows to the alarm, {kind}", max(run.windows for run in runs if run.kind == kind), most=3)
        for kind in HARD
        if kind in kinds
    ]
    false = sum(run.alarms for run in normal)
    told = f"{len(normal)} runs of the simulated line for each kind of fault, each for at most {run_s:g} s after "
    told += f"{LEAD_S} s of well running. Limits were set on {', '.join(CHOSEN_ON)}; the other kinds are held out. Not "
    told += "a number is a fault of series, of which this line has none."
    return Section(
        "The simulated line",
        told,
        goals,
        [
            Table(
                "Runs by what the first alarm names, and windows wholly in the fault until then.",
                COLUMNS,
                [_row([run for run in runs if run.kind == kind]) for kind in kinds],
            ),
            Table(
                "Alarms whose cause is right.",
                ("kinds", "number", "alarms", "right", "right by evidence alone"),
                [
                    _shares("held out", runs, held_out),
                    _shares("limits set on", runs, [k for k in kinds if k in CHOSEN_ON]),
                ],
            ),
            Table(
                "Kinds with runs that raised no alarm: these are in no share.",
                ("fault", "runs without an alarm", "of"),
                [row for kind in kinds if (row := _silent(runs, kind))[1]],
            ),
            Table(
                "Well running: alarms of all kinds, each of them false. Drift is still learned in so short a time.",
                ("hours", "alarms", "a day"),
                [(round(24 * days, 2), false, false / days if days else None)],
            ),
        ],
    )


CAUSES = ("sensor", "process", "undecided", OTHER, "")
COLUMNS = (
    *("fault", "held out", "cause", "sensor", "process", "undecided", OTHER, "no alarm"),
    *("right by evidence alone", "windows, median", "windows, worst"),
)


def _row(runs: Sequence[Run]) -> tuple[Cell, ...]:
    """Of the runs of one kind of fault."""
    kind, delays = runs[0].kind, [run.windows for run in runs]
    right = sum(run.by_evidence == FAULTS[kind].cause for run in runs)
    counts = [sum(run.cause == cause for run in runs) for cause in CAUSES]
    median, worst = (value if math.isfinite(value) else None for value in (float(np.median(delays)), max(delays)))
    return kind, "no" if kind in CHOSEN_ON else "yes", FAULTS[kind].cause, *counts, right, median, worst


def _share(runs: Sequence[Run], kinds: Sequence[str], by_evidence: bool = False) -> float:
    """Share of the alarms of these kinds whose cause is right; not a number without an alarm."""
    named = [(run.kind, run.by_evidence if by_evidence else run.cause) for run in runs if run.cause]
    right = [FAULTS[kind].cause == cause for kind, cause in named if kind in kinds]
    return float(np.mean(right)) if right else math.nan


def _shares(told: str, runs: Sequence[Run], kinds: Sequence[str]) -> tuple[Cell, ...]:
    alarms = sum(bool(run.cause) for run in runs if run.kind in kinds)
    return told, len(kinds), alarms, _share(runs, kinds), _share(runs, kinds, by_evidence=True)


def _silent(runs: Sequence[Run], kind: str) -> tuple[str, int, int]:
    of_kind = [run for run in runs if run.kind == kind]
    return kind, sum(not run.cause for run in of_kind), len(of_kind)
