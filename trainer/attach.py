"""A new kind of sensor joins a space in which it was never recorded (exmcr.md): from plan to head file.

The base stays as it is, to the bit: its folder is only read, and its parameters, buffers and embeddings are hashed
before and after. What is written is one file; deleting it detaches the sensor.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lineside.errors import ConfigError, GateError
from lineside.files import sha256
from lineside.release import Gate
from trainer import attached
from trainer.align import Half, Way, align, baseline, matched_by, steps_of, upper_bound
from trainer.attach_plan import AttachPlan
from trainer.attached import About, Measured, hash_of
from trainer.checkpoint import WEIGHTS, identities
from trainer.encoders import unit
from trainer.gates import bank_pairs
from trainer.matching import asked, intervals, of_bound
from trainer.plan import place
from trainer.progress import Progress, silent
from trainer.projector import CMcr, ExMcr
from trainer.quadruples import Lookup, Memories
from trainer.spaces import Evidence, Spaces, evidence, pools, spaces
from trainer.work import Parent


def ways(
    plan: AttachPlan, known: Memories, model: ExMcr | CMcr, seen: Evidence, progress: Progress = silent
) -> dict[str, Way]:
    """The zero-pair head, the upper bound if there are pairs to learn it from, and the C-MCR baseline."""
    found = {"zero-pair": Way(plan.method, model.newcomer, model.partner)}
    if seen.learn is not None and seen.choose is not None:
        rows = len(known.m) + len(known.o_leaf) + len(known.c)
        found["upper bound"] = upper_bound(plan, seen.learn, seen.choose, steps_of(plan, rows), progress)
    if plan.method != "c-mcr":
        other = baseline(plan, known, progress)
        found["c-mcr"] = Way("c-mcr", other.newcomer, other.partner)
    return found


def gap(known: Memories, model: ExMcr | CMcr) -> tuple[float, float]:
    """Distance of the means of newcomer and overlap in the leaf, before and after f_l; -1 where there is no f_l."""
    o = known.o_leaf.mean(dim=0)
    before = float(torch.linalg.vector_norm(known.m.mean(dim=0) - o))
    if isinstance(model, CMcr):
        return before, -1.0
    with torch.no_grad():
        moved = model.projector.f_l(known.m).mean(dim=0)
    return before, float(torch.linalg.vector_norm(moved - o))


def measured(
    plan: AttachPlan, known: Memories, model: ExMcr | CMcr, seen: Evidence | None, progress: Progress = silent
) -> Measured:
    """All numbers of an attachment."""
    before, after = gap(known, model)
    if seen is None:
        return Measured(gap_before=before, gap_after=after)
    made = ways(plan, known, model, seen, progress)
    found = {name: matched_by(seen.held, way) for name, way in made.items()}
    shares = {}
    if "upper bound" in found:
        shares = {name: of_bound(found["zero-pair"], found["upper bound"], name) for name in found["zero-pair"].scores}
    return Measured(
        windows=len(seen.held),
        groups=len(np.unique(seen.held.groups)),
        rows={name: intervals(queries) for name, queries in found.items()},
        bound=made["upper bound"].name if "upper bound" in made else "",
        of_bound={name: share for name, share in shares.items() if np.isfinite(share.value)},
        gap_before=before,
        gap_after=after,
    )


@dataclass(frozen=True)
class Print:
    """What must not change of a base: its files, its parameters and buffers, its embeddings, how it retrieves."""

    files: str
    encoders: str
    embeddings: str
    retrieval: dict[str, float]

    @classmethod
    def take(cls, folder: Path, base: Parent, known: Memories) -> Print:
        """Of a base as it stands now; the folder's files are read anew."""
        stage = base.stage
        files = sha256("".join(sha256((folder / name).read_bytes()) for name in sorted(stage.files)).encode())
        encoders = hash_of(base.tensors.encoders.state_dict())
        return cls(files, encoders, hash_of({"o": known.o_base, "c": known.c}), base_retrieval(base))

    def differs(self, other: Print) -> list[Gate]:
        """The gates that say so: nothing differs, and retrieval is exactly equal."""
        pairs = zip(
            (self.files, self.encoders, self.embeddings), (other.files, other.encoders, other.embeddings), strict=True
        )
        delta = max((abs(value - other.retrieval[name]) for name, value in self.retrieval.items()), default=0.0)
        changed = float(sum(a != b for a, b in pairs))
        return [Gate("base changed", changed, 0.0, True), Gate("base retrieval delta", delta, 0.0, True)]


def base_retrieval(base: Parent) -> dict[str, float]:
    """Mean of every score between the base's own sensors, on the held-out features that its stage kept."""
    found: dict[str, float] = {}
    for a, b in bank_pairs(base.tensors.bank):
        x, y = base.tensors.bank[a].float(), base.tensors.bank[b].float()
        both = (x[:, -1] > 0) & (y[:, -1] > 0)
        if int(both.sum()) < 2:
            continue
        with torch.no_grad():
            z = [
                unit(base.tensors.encoders[name.rpartition("/")[2]].head(part[both, :-1])).numpy()
                for name, part in ((a, x), (b, y))
            ]
        scores = asked(z[0], z[1], np.arange(len(z[0]))).scores
        found |= {f"{a} + {b} {name}": float(values.mean()) for name, values in scores.items()}
    return found


def run_attach(plan: AttachPlan, folder: Path, progress: Progress = silent) -> About:
    """Attach by the plan that lies in `folder`: writes the head's file and gives what it says of itself.

    Goes on where it stopped, and gives back a finished head of the same plan and data as it is. A head whose gates
    fail is written as failed: look at `About.passed`. Raises ConfigError, RecordingError and GateError.
    """
    known = spaces(plan, folder)
    windows = pools(plan, known, folder, progress)
    memories, seen = windows.embedded(known), evidence(plan, known, folder, progress)
    out, data = place(plan.out, folder), data_hash(memories, seen)
    if out.exists():
        return finished(out, plan, data)
    half = Half(out.with_name(f".{out.name}.half"), identity(plan, known, data))
    base_folder = place(plan.base, folder)
    before = Print.take(base_folder, known.base, memories)
    model, lookups = align(plan, memories, half, progress)
    found = measured(plan, memories, model, seen, progress)
    after = Print.take(base_folder, known.base, windows.embedded(known))  # embedded anew, by the base as it is now
    gates = [*before.differs(after), *above_chance(found)]
    head, other = model.folded()
    about = attached.write(out, described(plan, known, data, lookups, found, gates, before), head, other)
    shutil.rmtree(half.folder, ignore_errors=True)
    return about


def described(
    plan: AttachPlan, known: Spaces, data: str, lookups: list[Lookup], found: Measured, gates: list[Gate], base: Print
) -> About:
    """What the head's file says of itself."""
    leaf, stage = known.leaf.stage, known.base.stage
    return About(
        newcomer=known.newcomer,
        overlap=known.overlap,
        partner=known.partner,
        space=stage.space,
        base_encoders=identities(stage, known.base.tensors.encoders),
        method=plan.method,
        norm=plan.projector.norm,
        dims=(leaf.plan.dim, plan.projector.hidden, stage.plan.dim),
        base_sha256=stage.files[WEIGHTS],
        leaf_sha256=leaf.files[WEIGHTS],
        plan_sha256=plan.sha256,
        data_sha256=data,
        seed=plan.seed,
        retrieval=lookups,
        measured=found,
        gates=gates,
        base_print=base.encoders,
    )


def above_chance(found: Measured) -> list[Gate]:
    """Held-out newcomers and partners find each other above chance, the whole interval; none without a hold-out."""
    return [
        Gate("zero-pair recall among few, low", rows["recall_few"].low, rows["recall_few"].chance, False)
        for name, rows in found.rows.items()
        if name == "zero-pair"
    ]


def data_hash(known: Memories, seen: Evidence | None) -> str:
    """Hash of all embeddings that are learned from or measured on."""
    tensors = {"m": known.m, "o_leaf": known.o_leaf, "o_base": known.o_base, "c": known.c}
    for name in ("held", "learn", "choose") if seen else ():
        if (part := getattr(seen, name)) is not None:
            tensors |= {f"{name}/m": part.m, f"{name}/c": part.c}
    return hash_of(tensors)


def identity(plan: AttachPlan, known: Spaces, data: str) -> str:
    """Under what a half-trained head goes on."""
    return sha256("\n".join((plan.sha256, known.leaf.stage.name, known.base.stage.name, data)).encode())


def finished(out: Path, plan: AttachPlan, data: str) -> About:
    """The head that is there already, if it is this one. Raises ConfigError."""
    about = attached.read_about(out)
    if (about.plan_sha256, about.data_sha256) != (plan.sha256, data):
        told = "holds a head of another plan, stage or recording"
        raise ConfigError(str(out), told, "choose another `out`, or delete the file to attach anew")
    return about


def must_pass(about: About, path: Path) -> None:
    """Raises GateError naming the first failed gate, its number and its limit."""
    for gate in about.gates:
        if not gate.passed:
            bound = "at most" if gate.at_most else "at least"
            told = f"gate `{gate.name}` is {gate.value:.4g}, must be {bound} {gate.limit:.4g}"
            raise GateError(str(path), told, "give larger pools or an overlap that tells more, or delete the file")
