"""Ways of learning stage by stage, each a few settings of one plan: `METHODS` is the table of `lineside train compare`.

All share encoders' sizes, batches, epochs, learning rate and the contrast by labels where a benchmark has any, so that
a row differs from another in what it says of itself and in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from msgspec import structs

from trainer.plan import (
    DefectSettings,
    DistillSettings,
    EncoderSettings,
    GateSettings,
    HeadSettings,
    LossSettings,
    Plan,
    ProtectionSettings,
    RecordingPart,
    ReplaySettings,
    TeacherSettings,
)

UNLIMITED = 1e9
LEARNED, WIDE, WIDE_PAIRS = EncoderSettings(move="all"), 4096, 256
NARROW = EncoderSettings(trunk="fixed", width=1024)
FREE = ProtectionSettings(rule="none", drift_budget=UNLIMITED)
HELD = ProtectionSettings(rule="hold", drift_budget=UNLIMITED, every=8, pace=1.0)
SOLVED = HeadSettings(fit="moments", looks=3)
FEW, MANY = 60, 200


@dataclass(frozen=True)
class Method:
    """One row: what it is, the settings by which it differs from plain fine-tuning, and whether all data come at once.

    `ours` marks what this project proposes, to be judged against the rest.
    """

    about: str
    settings: Callable[[Plan], Plan]
    joint: bool = False
    ours: bool = False


def base(seed: int, epochs: int, labels: bool) -> Plan:
    """Plain fine-tuning of everything."""
    return Plan(
        out="stage",
        recordings=[RecordingPart(path="benchmark")],
        seed=seed,
        epochs=epochs,
        batch=64,
        dim=64,
        encoders=LEARNED,
        losses=LossSettings(labels=labels),
        defects=DefectSettings(own=0, together=0),
        protection=FREE,
        gates=GateSettings(retrieval_times_chance=0, spread=1.0, retention_loss=1.0),
    )


def _with(**changes: object) -> Callable[[Plan], Plan]:
    return lambda plan: structs.replace(plan, **changes)


CTP = TeacherSettings(contrast=1.0, cross=1.0, same=1.0)


def _solved(heads: HeadSettings) -> Callable[[Plan], Plan]:
    """Random features and solved heads; few features where pairs are solved, as all modalities are in one matrix."""

    def settings(plan: Plan) -> Plan:
        width = WIDE if plan.losses.labels else WIDE_PAIRS
        return structs.replace(plan, encoders=EncoderSettings(trunk="fixed", width=width), heads=heads)

    return settings


METHODS: dict[str, Method] = {
    "fine-tune": Method("all weights, new data alone: the lower bound", _with()),
    "lwf": Method(
        "learning without forgetting: similarities between modalities are kept as the previous stage had them",
        _with(teacher=TeacherSettings(cross=2.0, temperature=0.2, teacher_temperature=0.2)),
    ),
    "ewc": Method(
        "elastic weight consolidation",
        _with(protection=ProtectionSettings(rule="ewc", strength=1e3, drift_budget=UNLIMITED)),
    ),
    "dns published": Method(
        "dual-sided null space as its authors' code runs it: gradients of heads on fixed random features",
        _with(encoders=NARROW, protection=ProtectionSettings(rule="published", drift_budget=UNLIMITED)),
    ),
    "ctp published": Method("compatible momentum and topology, all weights 1, all encoders", _with(teacher=CTP)),
    "replay 60": Method("60 stored pairs", _with(replay=ReplaySettings(size=FEW))),
    "replay 200": Method("200 stored pairs", _with(replay=ReplaySettings(size=MANY))),
    "co2l 200": Method(
        "200 stored pairs that only answer, and relation distillation with adaptive weight",
        _with(
            replay=ReplaySettings(size=MANY),
            losses=LossSettings(labels=True, old_anchors=False),
            distill=DistillSettings(weight=1.0, kappa=1.0),
        ),
    ),
    "nothing moves": Method(
        "the first stage's encoders and heads for ever: its backward transfer is what a growing gallery alone costs",
        _with(encoders=EncoderSettings(), protection=ProtectionSettings(drift_budget=1e-9)),
    ),
    "frozen, heads held": Method(
        "encoders of the first stage frozen, heads put back onto what they may be, drift budget 0.05",
        _with(encoders=EncoderSettings(), protection=ProtectionSettings(rule="hold")),
        ours=True,
    ),
    "frozen, heads rotated": Method(
        "encoders of the first stage frozen, heads in rotated coordinates, drift budget 0.05: a plan's default",
        _with(encoders=EncoderSettings(), protection=ProtectionSettings()),
        ours=True,
    ),
    "encoders held": Method(
        "every layer held to its old inputs' null space",
        _with(protection=structs.replace(HELD, epsilon=0.1)),
        ours=True,
    ),
    "random, heads rotated": Method(
        "random features, heads in rotated coordinates, drift budget 0.05",
        _with(encoders=NARROW, protection=ProtectionSettings()),
        ours=True,
    ),
    "random, heads rotated, loose": Method(
        "the same with epsilon 0.01 and no budget",
        _with(encoders=NARROW, protection=ProtectionSettings(epsilon=0.01, drift_budget=UNLIMITED)),
        ours=True,
    ),
    "learned, heads solved": Method(
        "encoders of the first stage frozen, heads solved from moments",
        _with(encoders=EncoderSettings(), heads=SOLVED),
        ours=True,
    ),
    "solved, one look": Method(
        "random features, heads solved from moments of unchanged windows",
        _solved(HeadSettings(fit="moments")),
        ours=True,
    ),
    "solved": Method(
        "random features, heads solved from moments of all stages: no stored pair, no forgetting",
        _solved(SOLVED),
        ours=True,
    ),
    "joint": Method("all data at once: the upper bound", _with(), joint=True),
}
