"""The loop by itself: one night from its first look to its report, by the product's own commands, each in a child.

Every step ends in one atomic write of the diary; a night that is cut goes on with the step that it was in. Each command
may be given twice: `train stage` goes on or gives back what it made, certifying and exporting write the same again,
publishing the same files is no new version, and no rollout is started that is on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import msgspec
from msgspec.structs import replace

from lineside import config
from lineside.clock import NS, Clock
from lineside.errors import BrokerError, ConfigError, GateError, LinesideError, RecordingError, ReleaseError
from lineside.evidence import INDEX, REPLAYED, Replayed
from lineside.files import write_atomic
from lineside.lock import only_one
from lineside.plant import PlantConfig
from lineside.release import Certificate, Gate
from lineside.targets import Pointer
from trainer import diary as diaries
from trainer import night as pure
from trainer.children import Answer
from trainer.desk import PUBLISH, ROLLOUT, STATUS, Desk
from trainer.diary import Beside, Diary, Night
from trainer.new_recordings import look as look_at
from trainer.new_recordings import readable
from trainer.night_plan import stage_plan

# A night ends with these, and a person looks; with any other error it stays open, and goes on at the next start.
REFUSED = (GateError.exit_code, ReleaseError.exit_code)
FOR_A_PERSON = (*REFUSED, ConfigError.exit_code, RecordingError.exit_code)
MINUTE_NS = 60 * NS


class Proof(msgspec.Struct, frozen=True):
    """The part of a finished stage's stage.json that tells whether it may be a parent."""

    certificate: Certificate


def run(desk: Desk, report: Callable[[Desk, Diary, Night], None], again: bool = False) -> Night:
    """One night, or the rest of one that was cut; `again` takes up the last one that ended with an error.

    `report` writes what a person reads. Raises ConfigError when another night runs in this folder, and where there is
    nothing to take up again.
    """
    with only_one(desk.folder, "night", with_children=True):
        file = desk.folder / "diary.json"
        diary = diaries.load(file)
        diary = reopened(diary) if again else diary
        night = diary.night or Night(name=_name(desk.clock), step="look")
        night = replace(night, code=0, reason="") if night.open else night
        diaries.save(file, diary := replace(diary, night=night))
        while night.open and not night.code:
            diary, night = stepped(desk, diary, night)
            diaries.save(file, diary := replace(diary, night=night))
        report(desk, diary, night)
        diaries.save(file, closed(diary, night))
        return night


Stepped = tuple[Diary, Night]


def stepped(desk: Desk, diary: Diary, night: Night) -> Stepped:
    """One step further, or to its error."""
    desk.work(night).mkdir(parents=True, exist_ok=True)
    try:
        return STEPS[night.step](desk, diary, night)
    except LinesideError as error:
        return diary, failed(night, error.exit_code, str(error))


def failed(night: Night, code: int, reason: str) -> Night:
    """A night whose command ended with an error: over, where it takes a person."""
    outcome = "refused" if code in REFUSED else "stopped" if code in FOR_A_PERSON else ""
    return replace(night, code=code, reason=reason, outcome=outcome)


def look(desk: Desk, diary: Diary, night: Night) -> Stepped:
    """Find what is new; decide whether there is enough; fix what tonight's stage is made of."""
    plan, pointers = desk.plan, desk.pointers(night)
    settled_ns = desk.clock.now_ns() - round(plan.settled_min * MINUTE_NS)
    labelled = [desk.place(folder) for folder in plan.labelled]
    seen = look_at([*(desk.place(folder) for folder in plan.recordings), *labelled], diary.seen, settled_ns)
    diary, every = replace(diary, seen=seen), readable(seen)
    notes = [f"{path}: {glance.refused}" for path, glance in seen.items() if glance.refused]
    night = replace(night, notes=notes)
    if way := pure.on_its_way(pointers):
        return diary, replace(night, outcome="waits", reason=f"{way} is on its way: promote or abort it")
    parent = pure.parent_of(_good(desk, diary), pointers)
    if not parent:
        mend = f"train the first one and look at it: out = {str(desk.stage(1))!r}"
        raise ConfigError(str(desk.stage(1).parent), "has no stage that passed its gates", mend)
    known = diary.known_to(parent)
    certify_on = str(desk.place(plan.certify_on)) if plan.certify_on else ""
    new = [found for found in every if found.sha256 not in known and found.path != certify_on]
    decision = pure.decide(new, plan.minutes, certify_on)
    if decision.why_not:
        told = "too little" if new else "nothing new"
        return diary, replace(night, outcome=told, reason=decision.why_not, learn=new, parent=parent)
    version = 1 + max([*_numbers(desk), *diary.learned, *_ever(pointers)])
    paths = [found.path for found in decision.learn]
    template = desk.place(plan.plan)
    text = stage_plan(template, desk.stage(version), desk.stage(parent), paths)
    key = pure.key_of(template.read_text(encoding="utf-8"), parent, decision.learn)
    if before := diary.tried.get(key):
        told = f"stage {before} learned the same from stage {parent}, and is not in use: it would come out the same"
        return diary, replace(night, outcome="nothing new", reason=told, learn=new, parent=parent)
    write_atomic(desk.work(night) / "plan.toml", text.encode())
    problems = [f"{found.path}: {found.problem}" for found in decision.learn if found.problem]
    return diary, replace(
        night,
        step="train",
        version=version,
        parent=parent,
        key=key,
        learn=list(decision.learn),
        modalities=sorted(name for name, minutes in pure.minutes_of(decision.learn).items() if minutes),
        certify_on=decision.certify_on,
        faulty=pure.faulty([found for found in every if _below(found.path, labelled)]),
        notes=[*notes, *problems],
    )


def train(desk: Desk, diary: Diary, night: Night) -> Stepped:
    """Learn a stage; one whose own gates fail is over."""
    answer = desk.ask(night, ("train", "stage", str(desk.work(night) / "plan.toml")))
    if answer.code not in (0, GateError.exit_code):
        return diary, failed(night, answer.code, answer.said)
    gates = msgspec.convert(answer.told.get("gates", []), list[Gate])
    drift = answer.told.get("embedding_drift", {})
    night = replace(night, gates=gates, drift=drift, stage=answer.told.get("name", ""))
    diary = replace(
        diary,
        learned={**diary.learned, night.version: [found.sha256 for found in night.learn]},
        parents={**diary.parents, night.version: night.parent},
        tried={**diary.tried, night.key: night.version},
    )
    return _unless(diary, night, answer, "certify")


def certify(desk: Desk, diary: Diary, night: Night) -> Stepped:
    """Prove the stage beside its parent and every version that a device may have."""
    rows: list[dict[str, object]] = []
    if desk.plan.plant:
        answer = desk.ask(night, STATUS)
        if answer.code not in (0, BrokerError.exit_code):
            return diary, failed(night, answer.code, answer.said)
        rows = answer.rows
        if answer.code:
            told = "devices could not be asked what they run: certified beside what the repository points at"
            night = replace(night, notes=[*night.notes, f"{told} ({answer.said})"])
    against = sorted({night.parent, *pure.in_field(desk.pointers(night), rows)} - {night.version})
    if missing := [version for version in against if not (desk.stage(version) / "stage.json").is_file()]:
        told = f"is not there, and version {missing[0]} is in the field"
        mend = "restore it, or bring the devices that have it to a later version"
        raise ConfigError(str(desk.stage(missing[0])), told, mend)
    words = [word for version in against for word in ("--against", str(desk.stage(version)))]
    words += ["--recording", night.certify_on, *(["--faulty", night.faulty] if night.faulty else [])]
    answer = desk.ask(night, ("train", "certify", str(desk.stage(night.version)), *words))
    found = [told for name, told in answer.told.items() if name.startswith("beside ")]
    beside = [_beside(told) for told in found]
    gates = [*night.gates, *(gate for told in found for gate in msgspec.convert(told["gates"], list[Gate]))]
    return _unless(diary, replace(night, against=against, beside=beside, gates=gates), answer, "export")


def export(desk: Desk, diary: Diary, night: Night) -> Stepped:
    """Write encoder files of the modalities that the stage learned."""
    words = ["export", "build", str(desk.stage(night.version)), "--out", str(desk.work(night) / "bundles")]
    words += ["--version", str(night.version), "--precision", desk.plan.precision, "{modalities}"]
    answer = desk.ask(night, words)
    night = replace(night, files=[each["file"] for each in answer.told.get("files", [])])
    return _unless(diary, night, answer, "labels")


def labels(desk: Desk, diary: Diary, night: Night) -> Stepped:
    """Play the labelled alarms to the stage; what it makes of them is told, and holds nothing up."""
    outcome: diaries.Outcome = "kept" if desk.plan.release == "none" else ""
    for folder in filter(lambda each: (each / INDEX).is_file(), map(desk.place, desk.plan.labelled)):
        words = ["export", "labels", str(desk.stage(night.version)), "--version", str(night.version)]
        words += ["--normal", night.certify_on, "--labelled", str(folder), "--out", str(_replayed(desk, night))]
        answer = desk.ask(night, words)
        if answer.code:
            told = f"labelled alarms of {folder} were not played to it: {answer.said}"
            night = replace(night, notes=[*night.notes, told])
        else:
            found = msgspec.convert(answer.told, Replayed)
            night = replace(night, again=[*night.again, *found.alarms], notes=[*night.notes, found.told])
    return diary, replace(night, step="publish", outcome=outcome)


def _replayed(desk: Desk, night: Night) -> Path:
    """Where the hub looks for it: in the plant's repository; without a plant, with the night."""
    if not desk.plan.plant:
        return desk.work(night) / f"{night.version}.json"
    file = desk.place(desk.plan.plant)
    return file.parent / config.load(file, PlantConfig).repository / REPLAYED / f"{night.version}.json"


def publish(desk: Desk, diary: Diary, night: Night) -> Stepped:
    """Sign them and put them into the repository, all in one step."""
    answer = desk.ask(night, PUBLISH)
    return _unless(diary, night, answer, "rollout", "published" if desk.plan.release == "publish" else "")


def rollout(desk: Desk, diary: Diary, night: Night) -> Stepped:
    """Begin with the first ring, unless that was done before the night was cut."""
    pointers = desk.pointers(night)
    mine = {name: pointers[name] for name in night.modalities if name in pointers}
    if any(night.version not in pure.pointed_at({name: pointer}) for name, pointer in mine.items()):
        answer = desk.ask(night, ROLLOUT)
        if answer.code:
            return diary, failed(night, answer.code, answer.said)
    return diary, replace(night, outcome="canary")


STEPS: dict[str, Callable[[Desk, Diary, Night], Stepped]] = {
    "look": look,
    "train": train,
    "certify": certify,
    "export": export,
    "labels": labels,
    "publish": publish,
    "rollout": rollout,
}


def reopened(diary: Diary) -> Diary:
    """The last night that ended with an error, open again: where it ended, or behind a gate that is waived by now."""
    if diary.night is not None or diary.ended is None:
        told = "a night is open already" if diary.night else "no night ended with an error"
        raise ConfigError("--again", told, "start it without --again")
    night = diary.ended
    if night.code == GateError.exit_code and night.step in ("train", "certify"):
        night = replace(night, step="export")
    return replace(diary, night=replace(night, outcome=""), ended=None)


def closed(diary: Diary, night: Night) -> Diary:
    """The diary after a night's report: one that is open still stays the night in progress."""
    if night.open:
        return diary
    refused = [version for version in diary.refused if version != night.version]
    if night.code:
        again = night if night.version else diary.ended
        return replace(diary, night=None, ended=again, refused=[*refused, *([night.version] if night.version else [])])
    return replace(diary, night=None, ended=None if night.version else diary.ended, refused=refused)


def _unless(diary: Diary, night: Night, answer: Answer, step: diaries.Step, outcome: diaries.Outcome = "") -> Stepped:
    """On to a step, or to the end with an outcome, unless the command failed."""
    if answer.code:
        return diary, failed(night, answer.code, answer.said)
    return diary, replace(night, step=step, outcome=outcome)


def _beside(told: dict[str, object]) -> Beside:
    """What `train certify` printed of one old stage: old with old, and all that is new together."""
    found = msgspec.convert(told, _Certified)
    new = max(found.mixes, key=lambda mix: len(mix.new))
    both = None if new.recall is None or found.recall_old is None else found.recall_old * new.recall.value
    return Beside(
        against=found.against,
        retrieval_before=found.recall_old,
        retrieval_after=both,
        auroc_before=found.area_old,
        auroc_after=new.area.value,
    )


class _Value(msgspec.Struct, frozen=True):
    value: float


class _Mixed(msgspec.Struct, frozen=True):
    new: list[str]
    recall: _Value | None
    area: _Value


class _Certified(msgspec.Struct, frozen=True):
    against: str
    recall_old: float | None
    area_old: float
    mixes: list[_Mixed]


def _good(desk: Desk, diary: Diary) -> list[int]:
    """Finished stages whose gates passed and which no later gate refused."""
    good = []
    for version in set(_numbers(desk)) - set(diary.refused):
        file = desk.stage(version) / "stage.json"
        if file.is_file():
            proof = msgspec.json.decode(file.read_bytes(), type=Proof)
            good += [version] if all(gate.passed for gate in proof.certificate.gates) else []
    return good


def _numbers(desk: Desk) -> list[int]:
    folders = desk.stage(1).parent.glob("*")
    return [int(folder.name) for folder in folders if folder.is_dir() and folder.name.isdecimal()]


def _ever(pointers: dict[str, Pointer]) -> set[int]:
    """Every version that modalities pointed at."""
    return pure.pointed_at(pointers) | {version for pointer in pointers.values() for version in pointer.history}


def _below(path: str, folders: Sequence[Path]) -> bool:
    return any(Path(path).is_relative_to(folder) for folder in folders)


def _name(clock: Clock) -> str:
    """A night's name: when it began, UTC."""
    return datetime.fromtimestamp(clock.now_ns() / NS, timezone.utc).strftime("%Y-%m-%dT%H%M%S")
