"""`lineside train register` and `adapt`: from labelled recordings to a registry, and from it to a fused model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lineside.errors import ConfigError, GateError, RecordingError
from lineside.features import Prepare, modality
from lineside.files import sha256
from trainer import classifier, fused, registry
from trainer.adapt_plan import AdaptPlan, LabelledPlan, RegisterPlan
from trainer.data import read
from trainer.fused import AdapterFile, Description, Member
from trainer.fusion_result import Result
from trainer.fusion_table import measured
from trainer.labelled import Labelled, by_time, data_sha256
from trainer.plan import place
from trainer.progress import Progress, silent
from trainer.registry import Entry, Registered
from trainer.ways import Way, all_ways, choose


@dataclass(frozen=True)
class Adapted:
    """What was found, and the way that was chosen."""

    result: Result
    way: Way


def run_register(plan: RegisterPlan, base: Path, progress: Progress = silent) -> dict[str, Entry]:
    """Train, calibrate and measure a stand-alone model of each modality, and put them into the registry."""
    specs = {modality(spec): spec for spec in plan.prepare}
    data = read_labelled(plan, base, specs, progress)
    found = {name: registry.make(data, name, plan, progress) for name in sorted(set(data.dataset.modalities.values()))}
    registry.save(place(plan.registry, base), found)
    return {name: each.entry for name, each in found.items()}


def run_adapt(plan: AdaptPlan, base: Path, progress: Progress = silent) -> Description:
    """Fuse registered models by a plan that lies in folder `base`, and write the fused model.

    One whose gates fail is written as failed: look at `Result.passed`. Raises ConfigError, RecordingError, GateError.
    """
    out, folder = place(plan.out, base), place(plan.registry, base)
    if (out / fused.DESCRIPTION).exists() and fused.read(out).plan_sha256 != plan.sha256:
        raise ConfigError(str(out), "holds the fused model of another plan", "choose another `out`, or delete it")
    table = registry.read(folder)
    registry.load(folder, plan.modalities)  # what cannot enter fusion is refused before hours are read
    data = read_labelled(plan, base, {name: entry.prepare for name, entry in table.entries.items()}, progress)
    known = registry.load(folder, set(data.dataset.modalities.values()))
    done = adapt(known, data, plan, progress, [*data.dataset.warnings, *_elsewhere(known, data, plan)])
    about, files = description(done, known, data, plan)
    fused.save(out, about, files)
    return about


def read_labelled(plan: LabelledPlan, base: Path, specs: dict[str, Prepare], progress: Progress) -> Labelled:
    """The plan's recordings, split by time."""
    only = set(plan.modalities) or None
    dataset = read(plan.recordings, base, plan.windows, specs, progress, only, faults=plan.faults)
    if missing := set(plan.modalities) - set(dataset.modalities.values()):
        told = f"has no usable windows of {', '.join(sorted(missing))}"
        raise RecordingError(plan.recordings[0].path, told, "leave it out of `modalities`, or record it")
    return by_time(dataset, plan.validation, plan.held_out, plan.recordings[0].path)


def adapt(
    known: Mapping[str, Registered],
    data: Labelled,
    plan: AdaptPlan,
    progress: Progress = silent,
    warnings: Sequence[str] = (),
) -> Adapted:
    """Every way of fusing `known` models on labelled moments, and the one to ship, chosen before held-out is read.

    Raises ConfigError for fewer than two sensors, a sensor whose modality is not registered, other states than the
    models tell apart, and where peft is wanted and not installed; GateError when a frozen base has moved.
    """
    _must_fit(known, data)
    ways = all_ways(known, data, plan, progress)
    way, why = choose(ways, data, plan)
    frozen = {name: _unmoved(name, each) for name, each in known.items()}
    return Adapted(measured(ways, way, why, data, plan.gates, frozen, warnings), way)


def description(
    done: Adapted, known: Mapping[str, Registered], data: Labelled, plan: AdaptPlan
) -> tuple[Description, dict[str, bytes]]:
    """fused.json of the chosen way, and the files beside it by name."""
    members, files = {}, {}
    for name, each in known.items():
        base = done.way.bases.get(name) or classifier.to_bytes(each.model)
        stored = sha256(base)
        adapters = {}
        if pairs := done.way.adapters.get(name):
            file = f"{name}-adapter-{plan.stage}.safetensors"
            adapters[file] = AdapterFile(file, sha256(pairs), plan.stage, done.way.rank)
            files[file] = pairs
        members[name] = Member(
            base=f"{name}-{stored[:12]}.safetensors",
            base_sha256=stored,
            registered_sha256=each.entry.sha256,
            prepare=each.entry.prepare,
            temperature=done.way.models.temperatures[name],
            adapters=list(adapters.values()),
        )
        files[members[name].base] = base
    about = Description(
        stage=plan.stage,
        names=list(data.names),
        log_prior=data.log_prior().tolist(),
        sensors=data.dataset.modalities,
        weights=dict(done.way.weights),
        members=members,
        plan_sha256=plan.sha256,
        result=done.result,
    )
    return about, files


def _must_fit(known: Mapping[str, Registered], data: Labelled) -> None:
    kinds = data.dataset.modalities
    if len(kinds) < 2:
        told = f"gives {', '.join(kinds) or 'no sensor'}, and fusion needs two sensors"
        raise ConfigError("adapt", told, "record a second sensor of the station")
    for sensor, kind in kinds.items():
        if kind not in known:
            told = f"({kind}) has no registered model, and no modality enters fusion without one"
            raise ConfigError(sensor, told, "make the entry with `lineside train register`")
        if tuple(known[kind].entry.names) != data.names:
            told = f"is registered for {', '.join(known[kind].entry.names)}; the labels are {', '.join(data.names)}"
            raise ConfigError(kind, told, "register it on these labels")
        for part, rows in data.rows.items():
            if not data.dataset.views[sensor].present[rows].any():
                raise RecordingError(sensor, f"has no good window in the {part} part", "record longer")


def _unmoved(name: str, each: Registered) -> str:
    """The hash of a registered model's weights and buffers, which must be that of its entry. Raises GateError."""
    found = sha256(classifier.to_bytes(each.model))
    if found != each.entry.sha256:
        told = f"has moved: its weights and buffers hash to {found[:12]}, registered was {each.entry.sha256[:12]}"
        raise GateError(name, told, "do not use this fusion, and report it")
    return found


def _elsewhere(known: Mapping[str, Registered], data: Labelled, plan: AdaptPlan) -> list[str]:
    """Models that were registered on other windows, or in other parts: what is held out here they may have seen."""
    return [
        f"{name}: registered on other recordings or parts; make sure that it never saw what is held out here"
        for name, each in known.items()
        if (each.entry.data_sha256, each.entry.validation, each.entry.held_out)
        != (data_sha256(data.dataset, name), plan.validation, plan.held_out)
    ]
