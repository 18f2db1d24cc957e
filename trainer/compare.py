"""Every method of a table on every stage of a benchmark, over seeds, by the product's own code.

Each run is a process of its own with one thread, so that its seconds and its peak memory are its own; its result is a
JSON file, and what is there already is not run again.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from lineside.clock import NS, SystemClock
from lineside.files import write_atomic
from trainer import evaluate
from trainer.benchmarks import BENCHMARKS, Benchmark, Split, Task
from trainer.data import Dataset, View
from trainer.encoders import Encoders
from trainer.methods import METHODS, Method, base
from trainer.plan import Plan
from trainer.progress import Progress, silent
from trainer.stage import Parent, Work, learn_stage, roomy

Embedded = dict[str, NDArray[np.float32]]  # embeddings (n, dim) by sensor

RESAMPLES = 1000
JOINT_TIMES = 2  # epochs of the joint run, which has to be an upper bound
FEW = 20


class Run(msgspec.Struct, frozen=True):
    """One method over all stages with one seed.

    `scores[t][i]` is the mean score of task i after stage t (in a joint run there is one stage). `hits` holds the
    score of every query, both ways, by task, after the last stage, `hits_then` after the task's own stage, `groups`
    what each query is resampled with. `drift` is the RMS change of the unit embeddings of earlier tasks' windows from
    their own stage to the last, 0..2. `stored_bytes` are the moments kept whole; `epsilons` what each stage protected.
    """

    benchmark: str
    method: str
    seed: int
    split: str
    epochs: int
    scores: list[list[float]]
    hits: list[list[float]]
    hits_then: list[list[float]]
    groups: list[list[int]]
    drift: float
    seconds: float
    peak_mib: float
    stored: int
    epsilons: list[float]

    @property
    def final(self) -> float:
        """Mean over tasks after the last stage."""
        return float(np.mean(self.scores[-1]))

    @property
    def backward_transfer(self) -> float:
        """Mean over earlier tasks of the last score less that of the task's own stage; 0 where there is one stage."""
        last = len(self.scores) - 1
        moved = [self.scores[-1][i] - self.scores[i][i] for i in range(last)]
        return float(np.mean(moved)) if moved else 0.0

    @property
    def forgetting(self) -> float:
        """Mean over earlier tasks of the best score ever less the last."""
        last = len(self.scores) - 1
        lost = [max(row[i] for row in self.scores[i:]) - self.scores[-1][i] for i in range(last)]
        return float(np.mean(lost)) if lost else 0.0

    @property
    def learned(self) -> float:
        """Mean over tasks of the score after their own stage."""
        return float(np.mean([self.scores[min(i, len(self.scores) - 1)][i] for i in range(len(self.scores[-1]))]))

    @property
    def worst(self) -> float:
        """The least share that a task has left of its own peak."""
        count = len(self.scores[-1])
        peaks = [max(row[i] for row in self.scores if len(row) > i) for i in range(count)]
        return min(last / peak if peak else 0.0 for last, peak in zip(self.scores[-1], peaks, strict=True))


READ: dict[str, Sequence[Benchmark]] = {}  # read once, before the processes are forked


@dataclass(frozen=True)
class Job:
    """What one process is to run, and where its result goes."""

    name: str
    number: int
    method: str
    seed: int
    split: Split
    epochs: int
    path: Path


def compare(
    data: Path,
    name: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    split: Split,
    epochs: int,
    folder: Path,
    progress: Progress = silent,
) -> list[Run]:
    """Run what `folder` does not hold yet, as many at once as there are cores, and give all results in order."""
    folder.mkdir(parents=True, exist_ok=True)
    READ[name] = BENCHMARKS[name](data)
    jobs = [
        Job(name, number, method, seed, split, epochs, folder / _file(name, number, method, seed, split, epochs))
        for seed in seeds
        for method in methods
        for number in range(len(READ[name]))
    ]
    waiting = [job for job in jobs if not job.path.exists()]
    progress("runs", len(jobs) - len(waiting), len(jobs))
    with multiprocessing.get_context("fork").Pool(os.cpu_count(), maxtasksperchild=1) as pool:
        for done, _ in enumerate(pool.imap_unordered(run_job, waiting), 1):
            progress("runs", len(jobs) - len(waiting) + done, len(jobs))
    return [msgspec.json.decode(job.path.read_bytes(), type=Run) for job in jobs]


def _file(name: str, number: int, method: str, seed: int, split: Split, epochs: int) -> str:
    return f"{name}-{number}-{method.replace(' ', '_').replace(',', '')}-{seed}-{split}-{epochs}.json"


def run_job(job: Job) -> None:
    """Run one method on one benchmark in this process, and write its result."""
    torch.set_num_threads(1)
    found = run(READ[job.name][job.number], job.method, METHODS[job.method], job.seed, job.split, job.epochs)
    write_atomic(job.path, msgspec.json.encode(found))


def run(benchmark: Benchmark, name: str, method: Method, seed: int, split: Split, epochs: int) -> Run:
    """Learn the tasks of a benchmark in order (or all at once) and measure after every stage."""
    clock = SystemClock()
    tasks = benchmark.tasks
    stages = [union(tasks)] if method.joint else [(task.parts["train"], task.parts["val"]) for task in tasks]
    plan = method.settings(base(seed, JOINT_TIMES * epochs if method.joint else epochs, benchmark.by == "class"))
    scores: list[list[float]] = []
    hits: list[list[list[float]]] = []
    then: list[Embedded] = []
    z: list[Embedded] = []
    epsilons, parent, seconds = [], None, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number, (learn, held) in enumerate(stages):
            began = clock.now_ns()
            parent, epsilon = learn_task(plan, learn, held, parent, Path(folder) / str(number))
            seconds += (clock.now_ns() - began) / NS
            epsilons.append(epsilon)
            seen = len(tasks) if method.joint else number + 1
            z = [embeddings(parent.tensors.encoders, task.parts[split]) for task in tasks[:seen]]
            hits.append([score(benchmark, z, split, i) for i in range(seen)])
            scores.append([float(np.mean(row)) for row in hits[-1]])
            then.append(z[number])
    assert parent is not None
    return Run(
        benchmark=benchmark.name,
        method=name,
        seed=seed,
        split=split,
        epochs=epochs,
        scores=scores,
        hits=hits[-1],
        hits_then=[hits[min(i, len(hits) - 1)][i] for i in range(len(tasks))],
        groups=[np.tile(task.groups[split], 2 * len(task.pairs)).tolist() for task in tasks],
        drift=drifted(then, z),
        seconds=seconds,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        stored=len(parent.stage.replay),
        epsilons=epsilons,
    )


def learn_task(plan: Plan, learn: Dataset, held: Dataset, parent: Parent | None, folder: Path) -> tuple[Parent, float]:
    """One stage by the product's own code, learned from one dataset and checked on another."""
    both = learn.joined(held)
    rows = np.arange(len(both))
    work = Work(
        plan,
        both,
        rows[: len(learn)],
        rows[len(learn) :],
        parent,
        folder,
        torch.device("cpu"),
        plan.protection.epsilon,
    )
    work = roomy(work, SystemClock())
    done = learn_stage(work, SystemClock())
    assert done is not None
    return done, work.epsilon


def union(tasks: Sequence[Task]) -> tuple[Dataset, Dataset]:
    """All tasks' training and validation data, each as one dataset; a sensor that a task lacks is absent there."""
    return together([task.parts["train"] for task in tasks]), together([task.parts["val"] for task in tasks])


def together(parts: Sequence[Dataset]) -> Dataset:
    """Datasets one after the other, whatever sensors each has."""
    sensors = {sensor: view for part in parts for sensor, view in part.views.items()}
    views = {}
    for sensor, like in sensors.items():
        inputs, present = [], []
        for part in parts:
            mine = part.views.get(sensor)
            nothing = np.zeros((len(part), *like.inputs.shape[1:]), like.inputs.dtype)
            inputs.append(nothing if mine is None else mine.inputs)
            present.append(np.zeros(len(part), np.bool_) if mine is None else mine.present)
        views[sensor] = View(like.modality, np.concatenate(inputs), np.concatenate(present))
    first = parts[0]
    return Dataset(
        views,
        {name: spec for part in parts for name, spec in part.specs.items()},
        np.concatenate([part.start_ns for part in parts]),
        np.concatenate([part.recording for part in parts]),
        first.length_ns,
        first.hop_ns,
        {},
        [],
        np.concatenate([part.labels for part in parts]),
    )


def embeddings(encoders: Encoders, dataset: Dataset) -> Embedded:
    """Embeddings (n, dim) of every sensor's windows."""
    return {sensor: evaluate.embed(encoders[view.modality], view.inputs) for sensor, view in dataset.views.items()}


def score(benchmark: Benchmark, z: Sequence[Embedded], split: Split, task: int) -> list[float]:
    """The score of every query of one task: for each of its pairs, one way after the other; `z` are of all seen tasks.

    By class, 1 where the nearest of the gallery is of the query's class; by moment, the chance that the query's own
    moment comes first among it and 19 others drawn from the gallery.
    """
    parts = [each.parts[split] for each in benchmark.tasks[: len(z)]]
    gallery = range(len(z)) if benchmark.gallery == "seen" else [task]
    names = np.concatenate([parts[i].labels for i in gallery])
    found: list[float] = []
    for a, b in benchmark.tasks[task].pairs:
        for query, answer in ((a, b), (b, a)):
            if benchmark.by == "moment":
                rank = evaluate.ranks(z[task][query], z[task][answer])
                found += evaluate.chances_among(rank, min(FEW, len(rank))).tolist()
            else:
                candidates = np.concatenate([z[i][answer] for i in gallery])
                nearest = (z[task][query] @ candidates.T).argmax(axis=1)
                found += (names[nearest] == parts[task].labels).astype(float).tolist()
    return found


def drifted(then: Sequence[Embedded], now: Sequence[Embedded]) -> float:
    """RMS over earlier tasks' windows of how far their unit embeddings have moved since their own stage."""
    squares = [
        ((after[sensor] - before[sensor]) ** 2).sum(axis=1)
        for before, after in zip(then[:-1], now, strict=False)
        for sensor in before
    ]
    return math.sqrt(float(np.mean(np.concatenate(squares)))) if squares else 0.0


@dataclass(frozen=True)
class Row:
    """One method over its seeds: means and standard deviations over seeds, bootstrap intervals (95 %) over groups."""

    method: str
    final: float
    final_std: float
    low: float
    high: float
    backward: float
    backward_std: float
    backward_low: float
    backward_high: float
    forgetting: float
    learned: float
    worst: float
    of_joint: float
    drift: float
    seconds: float
    peak_mib: float
    stored: int
    seeds: int


def summary(runs: Sequence[Run]) -> list[Row]:
    """One row a method, of one benchmark's runs, in the order of METHODS."""
    names = [name for name in METHODS if any(run.method == name for run in runs)]
    joint = [run.final for run in runs if run.method == "joint"]
    upper = float(np.mean(joint)) if joint else math.nan
    return [row(name, [run for run in runs if run.method == name], upper) for name in names]


def row(name: str, runs: Sequence[Run], upper: float) -> Row:
    """The row of one method."""

    def mean(value: Callable[[Run], float]) -> float:
        return float(np.mean([value(run) for run in runs]))

    def std(value: Callable[[Run], float]) -> float:
        return float(np.std([value(run) for run in runs], ddof=1)) if len(runs) > 1 else 0.0

    final, backward = bootstrap(runs)
    return Row(
        name,
        mean(lambda run: run.final),
        std(lambda run: run.final),
        *final,
        mean(lambda run: run.backward_transfer),
        std(lambda run: run.backward_transfer),
        *backward,
        mean(lambda run: run.forgetting),
        mean(lambda run: run.learned),
        min(run.worst for run in runs),
        mean(lambda run: run.final) / upper,
        mean(lambda run: run.drift),
        mean(lambda run: run.seconds),
        mean(lambda run: run.peak_mib),
        max(run.stored for run in runs),
        len(runs),
    )


def bootstrap(runs: Sequence[Run]) -> tuple[tuple[float, float], tuple[float, float]]:
    """95 % intervals of the final mean and of backward transfer, when the groups of each task are drawn anew.

    Queries of one group (the images paired with one clip, the windows of one file) are drawn together, as they are not
    independent; seeds are averaged before, so that the interval is that of the test data.
    """
    rng = np.random.default_rng(0)
    finals, moves = [], []
    for task in range(len(runs[0].hits)):
        now = np.mean([run.hits[task] for run in runs], axis=0)
        then = np.mean([run.hits_then[task] for run in runs], axis=0)
        _, index = np.unique(runs[0].groups[task], return_inverse=True)
        size = np.bincount(index)
        drawn = rng.multinomial(len(size), np.full(len(size), 1 / len(size)), RESAMPLES)  # (resamples, groups)
        weight = drawn @ size
        finals.append(drawn @ np.bincount(index, now) / weight)
        if task < len(runs[0].hits) - 1:
            moves.append(drawn @ np.bincount(index, now - then) / weight)
    final = np.mean(finals, axis=0)
    moved = np.mean(moves, axis=0) if moves else np.zeros(RESAMPLES)
    return _interval(final), _interval(moved)


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
