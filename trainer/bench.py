"""What protection and teachers cost: training steps with and without them, interleaved in one run."""

from __future__ import annotations

import copy
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from msgspec import structs
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from lineside import features
from lineside.clock import NS, Clock
from lineside.features import CameraPrepare, MicrophonePrepare, Prepare
from trainer import layers, published
from trainer.checkpoint import load_stage, load_tensors
from trainer.data import Dataset, View
from trainer.encoders import Encoder
from trainer.loop import Course, batch_of, one_step, optimiser_of
from trainer.plan import (
    DefectSettings,
    DistillSettings,
    EncoderSettings,
    Plan,
    ProtectionSettings,
    RecordingPart,
    Rules,
    TeacherSettings,
)
from trainer.projection import Protection, nothing_seen, protect, rotate
from trainer.rules import Held
from trainer.stage import Parent, Work, course_of, learn_stage, start

RANK, EVERY, OLD = 128, 8, 2_000
PEAK_TFLOP_PER_S = {  # dense, from the data sheets; float32 without tensor cores
    "H100": {"float32": 67.0, "bfloat16": 989.0},
    "H200": {"float32": 67.0, "bfloat16": 989.0},
    "A100": {"float32": 19.5, "bfloat16": 312.0},
}
Heads = list[nn.Linear]
Extra = Callable[[Heads, int], None]


def measure(clock: Clock, dim: int = 512, batch: int = 64, rounds: int = 60) -> dict[str, float]:
    """Median time of a step of each way over the median of a plain one; `violation` is the held heads' own.

    `dense` is the published rule: two dense products on the gradient of each head. `violation` is the largest change
    of an old embedding relative to the largest old embedding, after all steps of `held every 8`.
    """
    torch.manual_seed(1)
    old = torch.randn(OLD, RANK - 1) @ torch.randn(RANK - 1, dim - 1)
    new = [torch.randn(batch, dim) for _ in range(2)]
    start = [nn.Linear(dim, dim, bias=False) for _ in range(2)]
    protections = [protect(head.weight, nothing_seen(dim - 1).joined(old), 1e-12) for head in start]
    dense = [(p.directions @ p.directions.T).float() for p in protections]
    quick = [protection.like(head.weight) for protection, head in zip(protections, start, strict=True)]
    every = torch.eye(dim)

    def gradients(heads: Heads, step: int) -> None:
        for head, inputs in zip(heads, dense, strict=True):
            assert head.weight.grad is not None
            head.weight.grad.copy_(published.project(head.weight.grad, every, inputs))

    def held(heads: Heads, step: int) -> None:
        if (step + 1) % EVERY == 0:
            _hold(heads, quick)

    ways: dict[str, tuple[Heads, Extra | None, Extra | None]] = {
        "plain": (copy.deepcopy(start), None, None),
        "dense": (copy.deepcopy(start), gradients, None),
        "held every step": (copy.deepcopy(start), None, lambda heads, step: _hold(heads, quick)),
        "held every 8": (copy.deepcopy(start), None, held),
        "rotated": (_rotated(copy.deepcopy(start), protections), None, None),
    }
    steppers = {name: torch.optim.AdamW([p for h in way[0] for p in h.parameters()]) for name, way in ways.items()}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(rounds * EVERY):
        for name, (heads, before, after) in ways.items():
            began = clock.now_ns()
            _step(heads, new, steppers[name], step, before, after)
            spent[name].append((clock.now_ns() - began) / 1e6)
    blocks = {
        name: [sum(times[k : k + EVERY]) for k in range(EVERY, len(times), EVERY)] for name, times in spent.items()
    }
    plain = statistics.median(blocks["plain"])
    ratios = {name: round(statistics.median(sums) / plain, 3) for name, sums in blocks.items()}
    x = torch.cat([old, torch.ones(OLD, 1)], dim=1).double()
    was = x @ protections[0].start.T
    moved = x @ (ways["held every 8"][0][0].weight.detach().double() - protections[0].start).T
    return {**ratios, "plain_ms": round(plain / EVERY, 3), "violation": float(moved.abs().max() / was.abs().max())}


def _step(
    heads: Heads,
    inputs: list[Tensor],
    stepper: torch.optim.Optimizer,
    step: int,
    before: Extra | None,
    after: Extra | None,
) -> None:
    stepper.zero_grad()
    a, b = (functional.normalize(head(x), dim=1) for head, x in zip(heads, inputs, strict=True))
    functional.cross_entropy(a @ b.T / 0.1, torch.arange(len(a))).backward()
    if before:
        before(heads, step)
    stepper.step()
    if after:
        after(heads, step)


def _hold(heads: Heads, protections: list[Protection]) -> None:
    for head, protection in zip(heads, protections, strict=True):
        protection.hold(head.weight)


def _rotated(heads: Heads, protections: list[Protection]) -> Heads:
    for head, protection in zip(heads, protections, strict=True):
        rotate(head, protection)
    return heads


@dataclass(frozen=True)
class Way:
    """One way of learning a second stage, ready to step."""

    course: Course
    optimiser: torch.optim.Optimizer
    milliseconds: list[float]
    peak: list[float]


WAYS: dict[str, tuple[Rules, TeacherSettings, DistillSettings]] = {
    "plain": ("none", TeacherSettings(), DistillSettings()),
    "held": ("hold", TeacherSettings(), DistillSettings()),
    "rotated": ("rotate", TeacherSettings(), DistillSettings()),
    "teachers, cached": ("hold", TeacherSettings(cross=1.0, same=1.0, cached=True), DistillSettings(weight=1.0)),
    "teachers, live": ("hold", TeacherSettings(contrast=1.0, cross=1.0, same=1.0), DistillSettings(weight=1.0)),
}


def measure_encoders(
    clock: Clock, where: torch.device, batch: int = 32, rounds: int = 6, precision: str = "float32"
) -> dict[str, float]:
    """Median time of a second stage's step of both default encoders, all layers moving, over that of a plain step.

    `held` keeps every layer to its old inputs' null space, every 8th step, `rotated` so, but heads in their free
    coordinates; with `teachers, cached` topology and
    relation distillation are added on embeddings that the old stage gave once, with `teachers, live` everything, the
    momentum teacher and its queues too. Batch norm is frozen in all. A `peak` ratio is of the memory that torch had at
    most (on a GPU), or by which a process of its own grew from before the stage was set up to its most; `violation` is
    how far `held` layers are from what they may be.
    """
    torch.manual_seed(1)
    first = _random_stage(batch, 1)
    grown: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        parent = learn_stage(_work(first, None, Path(folder), where, _plan(batch, precision)), clock)
        assert parent is not None
        second = _random_stage(batch, 2)
        ways = {
            name: _way(_work(second, parent, Path(folder), where, plan_of(name, batch, precision))) for name in WAYS
        }
        if where.type == "cpu":
            with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as alone:
                jobs = [(name, Path(folder) / "stage", batch, precision) for name in WAYS]
                grown = dict(zip(WAYS, alone.starmap(grown_by, jobs, chunksize=1), strict=True))
    for step in range(rounds * EVERY):
        for way in ways.values():
            _timed(way, step, where, clock)
    blocks = {
        name: [sum(way.milliseconds[k : k + EVERY]) for k in range(EVERY, len(way.milliseconds), EVERY)]
        for name, way in ways.items()
    }
    plain, peaks = statistics.median(blocks["plain"]), grown or {name: max(way.peak) for name, way in ways.items()}
    speed = EVERY * _flops(ways["plain"]) / plain / 1e9
    found = {name: round(statistics.median(sums) / plain, 3) for name, sums in blocks.items()}
    found |= {f"peak {name}": round(peak / peaks["plain"], 3) for name, peak in peaks.items()}
    found["plain_peak_mib"] = round(peaks["plain"])
    return {**found, "plain_ms": round(plain / EVERY, 2), "samples_per_s": round(1000 * EVERY * batch / plain, 1)} | {
        "tflop_per_s": round(speed, 4),
        **_share(speed, where, precision),
        "violation": _violation(ways["held"].course),
    }


def _flops(way: Way) -> float:
    """Floating-point operations of one step, forward and back."""
    with FlopCounterMode(display=False) as counter:
        one_step(way.course, way.optimiser, batch_of(way.course, 0))
    return float(counter.get_total_flops())


def _share(speed: float, where: torch.device, precision: str) -> dict[str, float]:
    """Share of the GPU's peak, for the GPUs whose data sheet we know."""
    if where.type != "cuda":
        return {}
    name = torch.cuda.get_device_name(where)
    known = [peaks for model, peaks in PEAK_TFLOP_PER_S.items() if model in name]
    return {"share_of_peak": round(speed / known[0][precision], 4)} if known else {}


def grown_by(name: str, parent: Path, batch: int, precision: str) -> float:
    """MiB by which this process grows while one way is set up and steps: for a fresh process, on Linux."""
    torch.set_num_threads(1)
    stage = load_stage(parent)
    before = Parent(stage, load_tensors(parent, stage))
    work = _work(_random_stage(batch, 2), before, parent, torch.device("cpu"), plan_of(name, batch, precision))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew (proc(5))
    began = _resident("VmRSS")
    way = _way(work)
    for step in range(3):
        one_step(way.course, way.optimiser, batch_of(way.course, step % way.course.steps))
    return _resident("VmHWM") - began


def _resident(name: str) -> float:
    """MiB of one line of /proc/self/status."""
    found = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(found.split()[1]) / 1024


def plan_of(name: str, batch: int, precision: str) -> Plan:
    """The plan of one of WAYS."""
    rule, teacher, distill = WAYS[name]
    protection = ProtectionSettings(rule=rule, epsilon=0.05, every=EVERY, drift_budget=1e9)
    return structs.replace(_plan(batch, precision), teacher=teacher, distill=distill, protection=protection)


def _plan(batch: int, precision: str) -> Plan:
    return Plan(
        out="bench",
        recordings=[RecordingPart(path="random")],
        epochs=1,
        batch=batch,
        precision=precision,  # type: ignore[arg-type]
        encoders=EncoderSettings(move="all"),
        defects=DefectSettings(own=0, together=0),
        protection=ProtectionSettings(epsilon=0.05, every=EVERY, drift_budget=1e9),
    )


def _random_stage(batch: int, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    specs: dict[str, Prepare] = {"camera": CameraPrepare(), "microphone": MicrophonePrepare()}
    count, views = 2 * batch, {}
    for name, spec in specs.items():
        drawn = rng.normal(size=(count, *features.shape(spec)))
        inputs = (128 + 40 * drawn).clip(0, 255) if name == "camera" else drawn - 6
        views[name] = View(name, inputs.astype(features.dtype(spec)), np.ones(count, np.bool_))
    start = np.arange(count, dtype=np.int64) * NS
    return Dataset(views, specs, start, np.zeros(count, np.int64), NS, NS, {}, [])


def _work(dataset: Dataset, parent: Parent | None, folder: Path, where: torch.device, plan: Plan) -> Work:
    rows = np.arange(len(dataset))
    return Work(plan, dataset, rows, rows[:8], parent, folder / "stage", where, plan.protection.epsilon)


def _way(work: Work) -> Way:
    encoders = start(work)
    course, _ = course_of(work, encoders)
    for encoder in encoders.values():  # a plain stage would let them learn: the same step in all is compared
        cast(Encoder, encoder).let_move("all", norms_learn=False)
    encoders.train()
    return Way(course, optimiser_of(encoders, work.plan, course.held), [], [])


def _timed(way: Way, step: int, where: torch.device, clock: Clock) -> None:
    cuda = where.type == "cuda"
    if cuda:
        torch.cuda.synchronize(where)
        torch.cuda.reset_peak_memory_stats(where)
    began = clock.now_ns()
    one_step(way.course, way.optimiser, batch_of(way.course, step % way.course.steps))
    if cuda:
        torch.cuda.synchronize(where)
    way.milliseconds.append((clock.now_ns() - began) / 1e6)
    way.peak.append(torch.cuda.max_memory_allocated(where) / 2**20 if cuda else 0.0)


def _violation(course: Course) -> float:
    """How far protected layers are from what they may be, relative to their weights, when the stage would end."""
    assert isinstance(course.rule, Held)
    course.rule.hold(0, last=True)
    worst = 0.0
    for name, protections in course.rule.trunks.items():
        trunk = course.encoders[name].trunk
        for layer, now in layers.matrices(trunk, protections).items():
            moved = now - protections[layer].start
            outside = (moved - protections[layer].allowed(moved)).norm() / protections[layer].start.norm()
            worst = max(worst, float(outside))
    return worst
