"""Every option of a plan through three stages: what it keeps, how it goes on where it stopped, and what it refuses."""

import csv
import dataclasses
import hashlib
import math
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from export import bundle
from lineside import config
from lineside.clock import NS, SimulatedClock
from lineside.errors import ConfigError, GateError, RecordingError
from lineside.features import FeaturesPrepare, SeriesPrepare
from trainer import checkpoint, evaluate, feature_files, guide, ledger, solved
from trainer import stage as room
from trainer.data import Dataset, View
from trainer.feature_files import FeatureFile, SensorFeatures
from trainer.losses import Seen
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
from trainer.processes import ALONE
from trainer.stage import EPSILONS, Work, learn_stage, roomy, run_stage
from trainer.supervised import cross_relation_distillation, relation_distillation, supervised_pair

pytestmark = pytest.mark.slow

WIDTH, DIM, SAMPLES, COUNT = 24, 16, 32, 60
KINDS = {"cam0": "camera", "mic0": "microphone", "pump0": "series"}
BACKBONES = {"camera": "ca" * 32, "microphone": "b1" * 32, "series": "5e" * 32}
NO_DEFECTS, WITHOUT_LIMIT = DefectSettings(own=0, together=0), 1e9
OPEN = GateSettings(retrieval_times_chance=0, spread=1.0, retention_loss=1.0)
ADAPTERS = EncoderSettings(move="adapters")
LABELS, SOLVED, FIXED = LossSettings(labels=True), HeadSettings(fit="moments"), EncoderSettings(trunk="fixed", width=32)
CTP = TeacherSettings(contrast=1.0, cross=1.0, same=1.0, queue=40)


def rule(name="hold", **more):
    return ProtectionSettings(**{"rule": name, "drift_budget": WITHOUT_LIMIT, **more})


@pytest.fixture(autouse=True)
def _one_thread():
    """`run_stage` takes all cores; what follows it shall not."""
    torch.set_num_threads(1)


# A line of frozen features, and one of waves


def dataset(views, specs, labels=None):
    count = len(next(iter(views.values())).present)
    names = np.array([""] * count if labels is None else labels, np.str_)
    return Dataset(views, specs, np.arange(count) * NS, np.zeros(count, np.int64), NS, NS, {}, [], names)


def scene(part=0, sensors=tuple(KINDS), count=COUNT, kinds=4, modalities=KINDS):
    """Moments of some kinds (labels "0-a", …), seen by each sensor in its own way: four directions, others each part.

    Part 0 gives every feature a scale, so that later parts have room beside it.
    """
    rng = np.random.default_rng([1, part])
    kind = rng.permutation(count) % kinds
    state = rng.normal(size=(kinds, 4))[kind] + 0.4 * rng.normal(size=(count, 4))
    views = {}
    for sensor in sensors:
        mix = np.random.default_rng([2, part, ord(sensor[0])]).normal(size=(4, WIDTH))
        views[sensor] = View(modalities[sensor], (state @ mix).astype(np.float32), np.ones(count, np.bool_))
    specs = {modalities[sensor]: FeaturesPrepare(WIDTH, BACKBONES[modalities[sensor]]) for sensor in sensors}
    return dataset(views, specs, [f"{part}-{chr(97 + k)}" for k in kind])


def waves(part=0, count=COUNT, samples=SAMPLES):
    """Two series of a tone, of one modality, whose encoder has a trunk that can learn."""
    rng = np.random.default_rng([3, part])
    pitch = rng.uniform(1 + 2 * part, 4 + 2 * part, size=(count, 1))
    views = {}
    for sensor, factor in {"pump0": 1.0, "pump1": 1.7}.items():
        wave = np.sin(2 * np.pi * factor * pitch * np.arange(samples) / SAMPLES)
        wave += 0.05 * rng.normal(size=wave.shape)
        views[sensor] = View("series", wave[:, None].astype(np.float32), np.ones(count, np.bool_))
    return dataset(views, {"series": SeriesPrepare(channels=1, samples=samples)})


def seen_in(data, sensor, rows):
    """The dataset with one sensor present in some rows alone."""
    view, present = data.views[sensor], np.zeros(len(data), np.bool_)
    present[rows] = True
    return dataclasses.replace(data, views={**data.views, sensor: View(view.modality, view.inputs, present)})


def plan(**changes):
    whole = Plan(
        out="stage",
        recordings=[RecordingPart("recording")],
        dim=DIM,
        batch=16,
        epochs=2,
        defects=NO_DEFECTS,
        gates=OPEN,
        protection=rule(),
    )
    return msgspec.structs.replace(whole, **changes)


def work(folder, data, parent=None, **changes):
    wanted = plan(**changes)
    rows = data.split(wanted.held_out)
    return Work(wanted, data, *rows, parent, folder, torch.device("cpu"), wanted.protection.epsilon)


def learn(folder, data, parent=None, *, max_steps=None, **changes):
    """One stage, whose clock stands still, so that even the log's seconds agree."""
    clock = SimulatedClock()
    return learn_stage(roomy(work(folder, data, parent, **changes), clock), clock, max_steps=max_steps)


def loaded(folder):
    stage = checkpoint.load_stage(folder)
    return room.Parent(stage, checkpoint.load_tensors(folder, stage))


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}


def flat(value, name=""):
    """Every tensor below `value` by its path; of a changed trunk only the layers that could move."""
    if isinstance(value, checkpoint.LayerChange):
        value = {"starts": value.starts, "seen": {layer: value.seen[layer] for layer in value.starts}}
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    elif dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        return {path: x for key, part in value.items() for path, x in flat(part, f"{name}/{key}").items()}
    return {} if value is None else {name: torch.as_tensor(value) if not isinstance(value, str) else value}


def equal(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name] for name in a
    )


def copied(tensors):
    return {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in flat(tensors).items()}


def weights(parent):
    return parent.tensors.encoders.state_dict()


def moved(a, b):
    """Names of the weights in which two stages differ, of those that both have."""
    old, new = weights(a), weights(b)
    return {name for name in old if not torch.equal(old[name], new[name])}


def log(folder):
    """By step, the terms of the loss by name."""
    with (folder / "log.csv").open() as file:
        rows = [row["terms"].split() for row in csv.DictReader(file)]
    return [{name: float(value) for name, _, value in (word.rpartition("=") for word in row)} for row in rows]


def embedded(parent, data, sensor):
    view = data.views[sensor]
    return evaluate.embed(parent.tensors.encoders[view.modality], view.inputs[view.present])


def recall(parent, data, a="cam0", b="mic0"):
    rank = evaluate.ranks(embedded(parent, data, a), embedded(parent, data, b))
    return evaluate.recall_among(rank, 20)


# Every option


@dataclasses.dataclass(frozen=True)
class Option:
    """Settings of a plan, the files that they add to a stage's folder, and the line that they are tried on."""

    settings: dict
    files: tuple = ()
    line: object = scene


OPTIONS = {
    "plain": Option({}),
    "labels": Option({"losses": LABELS}),
    "teacher": Option({"teacher": CTP}, ("teacher",)),
    "teacher cached": Option({"teacher": msgspec.structs.replace(CTP, cached=True)}, ("teacher",)),
    "topology": Option({"teacher": TeacherSettings(cross=1.0, same=0.5, cached=True)}),
    "soft targets": Option({"teacher": TeacherSettings(contrast=1.0, soft=0.3, pull=1.0)}, ("teacher",)),
    "distill": Option({"distill": DistillSettings(weight=0.5, kappa=2.0)}),
    "replay": Option({"replay": ReplaySettings(size=10)}, ("replay",)),
    "co2l": Option(
        {
            "replay": ReplaySettings(size=12, share=1.0),
            "losses": LossSettings(labels=True, old_anchors=False),
            "distill": DistillSettings(weight=1.0, kappa=1.0),
        },
        ("replay",),
    ),
    "hold, now and then": Option({"protection": rule(every=4)}),
    "rotate": Option({"protection": rule("rotate")}),
    "rotate, nothing free": Option({"protection": rule("rotate", epsilon=0.0)}),
    "rotate, teacher": Option({"protection": rule("rotate"), "teacher": CTP}, ("teacher",)),
    "published": Option({"protection": rule("published")}, ("rule",)),
    "ewc": Option({"protection": rule("ewc", strength=1e3)}, ("rule",)),
    "ewc, teacher": Option({"protection": rule("ewc"), "teacher": CTP}, ("rule", "teacher")),
    "none": Option({"protection": rule("none")}),
    "dual": Option({"protection": rule(sides="dual")}),
    "plasticity": Option({"protection": rule(plasticity=0.9)}),
    "within": Option({"losses": LossSettings(labels=True, within=1.0)}),
    "across": Option({"distill": DistillSettings(across=1.0)}),
    "optimiser goes on": Option({"optimiser": "continued"}),
    "defects": Option({"defects": DefectSettings(1.0, 0.6)}),
    "fixed": Option({"encoders": FIXED}),
    "solved": Option({"heads": SOLVED}, ("sums",)),
    "solved by labels": Option({"heads": HeadSettings(fit="moments", looks=3), "losses": LABELS}, ("sums",)),
    "solved, fixed": Option({"heads": SOLVED, "encoders": FIXED}, ("sums",)),
    "solved, rule none": Option({"heads": SOLVED, "protection": rule("none")}, ("sums",)),
    "bfloat16": Option({"precision": "bfloat16", "teacher": CTP, "distill": DistillSettings(weight=1.0)}, ("teacher",)),
    "fixed waves": Option({"encoders": FIXED}, line=waves),
    "all layers": Option(
        {"encoders": EncoderSettings(move="all"), "protection": rule(epsilon=1e-2)}, ("layers",), waves
    ),
    "last layers": Option(
        {"encoders": EncoderSettings(move={"series": "last"}), "protection": rule("rotate", epsilon=1e-2)},
        ("layers",),
        waves,
    ),
    "all layers, free": Option({"encoders": EncoderSettings(move="all"), "protection": rule("none")}, line=waves),
    "adapters": Option({"encoders": ADAPTERS, "protection": rule("rotate", epsilon=1e-2)}, ("layers",), waves),
}
ALWAYS = {"stage.json", *checkpoint.ALWAYS}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_learns_three_stages_that_come_back_from_disk_as_they_were(tmp_path, name):
    """And nothing of a parent changes, on disk or in memory; a chain from disk goes to the same bits (T14)."""
    option, settings = OPTIONS[name], {"epochs": 1, **OPTIONS[name].settings}
    first = parent = learn(tmp_path / "1", option.line(0), **settings)
    for number in (2, 3):
        before, held, folder = hashes(tmp_path / str(number - 1)), copied(parent.tensors), tmp_path / str(number)
        child = learn(folder, option.line(number - 1), parent, **settings)
        assert hashes(tmp_path / str(number - 1)) == before
        assert equal(flat(parent.tensors), held)
        stage = checkpoint.load_stage(folder)
        assert stage == child.stage
        assert equal(flat(checkpoint.load_tensors(folder, stage)), flat(child.tensors))
        logged = {"log.csv", checkpoint.OPTIMISER} if stage.counters.steps else set()
        assert hashes(folder).keys() == ALWAYS | logged | {f"{file}.safetensors" for file in option.files}
        assert (stage.stage, stage.parent, stage.space) == (number, parent.stage.name, first.stage.space)
        fresh = weights(child).keys() - weights(parent).keys()
        assert moved(parent, child) or fresh or name == "rotate, nothing free"
        parent = child
    again = learn(tmp_path / "again", option.line(2), loaded(tmp_path / "2"), **settings)
    assert again.stage == parent.stage


# Stopped and gone on


STOPPED = {
    "teacher, queue, distillation and replay": Option(
        {
            "teacher": CTP,
            "distill": DistillSettings(weight=1.0, kappa=1.0),
            "replay": ReplaySettings(size=20),
            "losses": LABELS,
            "defects": DefectSettings(1.0, 0.6),
        }
    ),
    "rotate": Option({"protection": rule("rotate")}),
    "rotate with a teacher": Option({"protection": rule("rotate", epsilon=1e-2), "teacher": CTP}),
    "ewc": Option({"protection": rule("ewc", strength=1e3)}),
    "all layers": Option({"encoders": EncoderSettings(move="all"), "protection": rule("none")}, line=waves),
    "optimiser goes on": Option({"optimiser": "continued", "distill": DistillSettings(across=1.0)}),
    "adapters with a teacher": Option(
        {"encoders": ADAPTERS, "protection": rule("rotate", epsilon=1e-2), "teacher": CTP}, line=waves
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STOPPED)
def test_a_later_stage_stopped_anywhere_goes_on_to_the_same_bits(tmp_path, name):
    """T14 and C10: after one step, within an epoch, at its end, one step before the last; a parent from disk each."""
    option = STOPPED[name]
    settings = {**option.settings, "batch": 8}  # six steps an epoch
    for number, data in enumerate((option.line(0), option.line(1)), 1):
        begun = loaded(tmp_path / str(number - 1)) if number > 1 else None
        learn(tmp_path / str(number), data, begun, **settings)
    whole = learn(tmp_path / "whole", option.line(2), loaded(tmp_path / "2"), **settings)
    assert whole.stage.counters.steps == 12
    for stop in (1, 4, 6, 11):
        assert learn(tmp_path / "parts", option.line(2), loaded(tmp_path / "2"), max_steps=stop, **settings) is None
        assert hashes(tmp_path / "parts").keys() == {"resume.safetensors", "log.csv"}
    parts = learn(tmp_path / "parts", option.line(2), loaded(tmp_path / "2"), **settings)
    assert hashes(tmp_path / "parts") == hashes(tmp_path / "whole")  # stage.json with its ledger and log.csv too
    assert parts.stage == whole.stage


# Labels


def test_labels_say_what_belongs_together(tmp_path):
    """Either stage is better at what it was asked for: to find any moment of a kind, or the moment itself."""
    data, lost = scene(), {}
    _, numbers = np.unique(data.labels, return_inverse=True)
    kinds = {"labels": torch.from_numpy(numbers), "moments": torch.full((COUNT,), -1)}
    for name, losses in {"labels": LABELS, "moments": LossSettings()}.items():
        found = learn(tmp_path / name, data, losses=losses, epochs=4, learning_rate=1e-2)
        a, b = (torch.from_numpy(embedded(found, data, sensor)) for sensor in ("cam0", "mic0"))
        every = torch.ones(COUNT, dtype=torch.bool)
        lost[name] = {asked: float(supervised_pair(a, b, labels, every, 0.2)) for asked, labels in kinds.items()}
    assert lost["labels"]["labels"] < lost["moments"]["labels"] - 0.1
    assert lost["moments"]["moments"] < lost["labels"]["moments"] - 0.1


def test_replayed_moments_ask_unless_the_plan_says_that_they_only_answer(tmp_path):
    parent = learn(tmp_path / "one", scene(), replay=ReplaySettings(size=20), losses=LABELS)
    terms = {}
    for asks in (True, False):
        losses = LossSettings(labels=True, old_anchors=asks)
        learn(tmp_path / str(asks), scene(1), parent, replay=ReplaySettings(size=20), losses=losses)
        terms[asks] = log(tmp_path / str(asks))[0]["cam0+mic0"]
    assert terms[True] != terms[False]


# Teachers


def relations(z):
    """Log shares of each row's similarity to the others."""
    cosines = z @ z.T / 0.07
    return torch.log_softmax(torch.from_numpy(cosines).masked_fill(torch.eye(len(z), dtype=torch.bool), -1e9), dim=1)


def test_topology_keeps_whom_the_old_model_found_similar(tmp_path):
    parent, data = learn(tmp_path / "one", scene(), epochs=8), scene(1)
    before, lost = relations(embedded(parent, data, "cam0")), {}
    for name, teacher in {
        "without": TeacherSettings(),
        "live": TeacherSettings(same=20.0),
        "cached": TeacherSettings(same=20.0, cached=True),
    }.items():
        settings = {"teacher": teacher, "protection": rule("none"), "epochs": 8, "learning_rate": 1e-2}
        now = relations(embedded(learn(tmp_path / name, data, parent, **settings), data, "cam0"))
        lost[name] = float(functional.kl_div(now, before, reduction="batchmean", log_target=True))
    assert max(lost["live"], lost["cached"]) < lost["without"] / 3
    assert {"same:cam0", "same:mic0", "same:pump0"} <= log(tmp_path / "live")[0].keys()


def test_a_cached_teacher_has_seen_every_moment_once_unchanged_replayed_ones_too(tmp_path):
    settings = {"teacher": msgspec.structs.replace(CTP, cached=True), "replay": ReplaySettings(size=10)}
    parent = learn(tmp_path / "one", scene(), **settings)
    begun = work(tmp_path / "two", seen_in(scene(1), "pump0", slice(0, 50)), parent, **settings)
    course, _ = room.course_of(begun, room.start(begun))
    assert len(course.replayed) == 10
    assert course.guide.cache.keys() == KINDS.keys()
    for sensor, view in course.dataset.views.items():
        wanted = evaluate.embed(parent.tensors.encoders[view.modality], view.inputs)
        np.testing.assert_array_equal(course.guide.cache[sensor][view.present], wanted[view.present])
    learn(tmp_path / "live", scene(1), parent, **{**settings, "teacher": CTP})
    learn(tmp_path / "cached", scene(1), parent, **settings)
    live, cached = (log(tmp_path / name)[0] for name in ("live", "cached"))
    assert live["cam0+mic0"] == cached["cam0+mic0"]
    assert live["same:cam0"] != cached["same:cam0"]  # as one saw changed windows, the other did not
    assert live["same:cam0"] == pytest.approx(cached["same:cam0"], abs=0.1)


@pytest.mark.parametrize("protection", [rule(), rule("rotate")], ids=["hold", "rotate"])
def test_the_momentum_teacher_is_pulled_to_the_old_model(tmp_path, protection):
    """Pulled whole it stays the old one; not at all, it runs after the student alone."""
    parent = learn(tmp_path / "one", scene())
    far = {}
    for pull in (0.0, 0.5, 1.0):
        teacher = TeacherSettings(contrast=1.0, pull=pull, momentum=0.5)
        child = learn(
            tmp_path / str(pull), scene(1), parent, teacher=teacher, protection=protection, learning_rate=1e-2
        )
        begun = work(tmp_path / "new", scene(1), parent, teacher=teacher, protection=protection)
        course, _ = room.course_of(begun, room.start(begun))
        course.guide.restore(child.tensors.guide)
        new = course.guide.momentum["camera"].head.weight.detach()
        old = parent.tensors.encoders["camera"].head.weight.detach()
        far[pull] = float((new - old).norm())
    assert far[1.0] < 1e-6
    assert 0.1 * far[0.0] < far[0.5] < 0.9 * far[0.0]


def test_queues_hold_the_last_moments_of_each_sensor_and_are_bounded(tmp_path):
    data = seen_in(scene(), "pump0", slice(0, 20))
    stage = learn(tmp_path / "one", data, teacher=TeacherSettings(contrast=1.0, queue=40), epochs=1)
    valid = {sensor: int(stage.tensors.guide[f"queue/{sensor}/valid"]) for sensor in KINDS}
    assert valid == {"cam0": 40, "mic0": 40, "pump0": 20}
    assert set(stage.tensors.guide["queue/pump0/ids"].tolist()) == {*range(20), -1}
    assert {"momentum:cam0+mic0", "momentum:cam0+pump0", "momentum:mic0+pump0"} == {
        name for name in log(tmp_path / "one")[0] if ":" in name
    }


def test_a_queue_s_rows_are_answers_in_the_next_step(tmp_path):
    for queue in (0, 40):
        learn(tmp_path / str(queue), scene(), teacher=TeacherSettings(contrast=1.0, queue=queue))
    without, with_rows = (log(tmp_path / str(queue)) for queue in (0, 40))
    assert without[0] == with_rows[0]
    assert with_rows[1]["momentum:cam0+mic0"] > without[1]["momentum:cam0+mic0"]


# Distillation


def test_distillation_weighs_what_the_ledger_of_earlier_stages_says(tmp_path):
    """Four stages: 1 in the second, then kappa times the logged losses' ratio between floor and cap, per modality."""
    settings = DistillSettings(weight=0.5, kappa=0.4, floor=0.05, cap=10.0)
    parent, lambdas = None, {}
    for number in range(1, 5):
        parent = learn(tmp_path / str(number), scene(number - 1), parent, distill=settings)
        rows = checkpoint.load_stage(tmp_path / str(number)).ledger
        assert Counter(row.stage for row in rows) == dict.fromkeys(range(1, number + 1), 3)
        for modality in KINDS.values():
            *past, last = [row for row in rows if row.modality == modality]
            wanted = ledger.adaptive_lambda(past, settings.kappa, settings.floor, settings.cap)
            assert last.lambda_t == wanted
            taught = past[1:]  # the first stage had no teacher
            if taught:
                ratio = sum(row.dis_all for row in taught) / sum(row.con for row in taught)
                assert wanted == pytest.approx(settings.kappa * ratio)
            lambdas[number, modality] = last.lambda_t
        found = [terms["distill:cam0"] for terms in log(tmp_path / str(number)) if "distill:cam0" in terms]
        camera = next(row for row in rows if (row.stage, row.modality) == (number, "camera"))
        assert bool(found) == (number > 1)
        if found:
            assert camera.dis_all == pytest.approx(np.mean(found) / (settings.weight * camera.lambda_t), rel=1e-9)
            assert camera.teacher_sha256 == hashes(tmp_path / str(number - 1))["weights.safetensors"]
        steps = log(tmp_path / str(number))
        assert camera.con == pytest.approx(
            np.mean([terms[pair] for pair in ("cam0+mic0", "cam0+pump0") for terms in steps])
        )
    assert all(lambdas[number, modality] == 1 for number in (1, 2) for modality in KINDS.values())
    assert len({lambdas[3, modality] for modality in KINDS.values()}) == 3
    assert all(0.05 < lambdas[number, modality] < 10 for number in (3, 4) for modality in KINDS.values())


def test_the_weight_of_distillation_is_the_one_in_the_ledger(tmp_path):
    """From one parent, with and without kappa: the first step sees the same windows with the same weights."""
    parent = None
    for number in (1, 2):
        parent = learn(tmp_path / str(number), scene(number - 1), parent, distill=DistillSettings(weight=1.0))
    first = {}
    for kappa in (0.0, 0.4, 1e6):
        child = learn(tmp_path / f"k{kappa}", scene(2), parent, distill=DistillSettings(1.0, kappa=kappa, floor=0.05))
        weight = {row.modality: row.lambda_t for row in child.stage.ledger if row.stage == 3}
        first[kappa] = weight, log(tmp_path / f"k{kappa}")[0]
    for kappa, (weight, terms) in first.items():
        for sensor, modality in KINDS.items():
            wanted = weight[modality] * first[0.0][1][f"distill:{sensor}"]
            assert terms[f"distill:{sensor}"] == pytest.approx(wanted, abs=1e-3), (kappa, sensor)
    assert set(first[1e6][0].values()) == {10.0}  # the cap


def within(known, data):
    """Relations of the sound's windows to each other."""
    return relations(embedded(known, data, "mic0"))


def across(known, data):
    """Log share of each sound's window among all of a camera's windows."""
    z, y = (torch.from_numpy(embedded(known, data, sensor)) for sensor in ("mic0", "cam0"))
    return functional.log_softmax(z @ y.T / 0.07, dim=1)


@pytest.mark.parametrize(
    ("setting", "kept", "least", "told"),
    [
        ("weight", within, 3, {"distill:cam0", "distill:mic0", "distill:pump0"}),
        ("across", across, 2, {"across:cam0+mic0", "across:cam0+pump0", "across:mic0+pump0"}),
    ],
)
def test_distillation_keeps_relations_within_and_across_sensors(tmp_path, setting, kept, least, told):
    parent, data = learn(tmp_path / "one", scene(), epochs=8), scene(1)
    before, lost = kept(parent, data), {}
    for weight in (0.0, 20.0):
        child = learn(
            tmp_path / str(weight),
            data,
            parent,
            distill=DistillSettings(**{setting: weight}, temperature=0.07, teacher_temperature=0.07),
            protection=rule("none"),
            epochs=8,
            learning_rate=1e-2,
        )
        lost[weight] = float(functional.kl_div(kept(child, data), before, reduction="batchmean", log_target=True))
        names = {name for terms in log(tmp_path / str(weight)) for name in terms}
        assert {name for name in names if name.startswith(("distill:", "across:"))} == (told if weight else set())
    assert lost[20.0] < lost[0.0] / least


def test_across_and_within_a_sensor_each_modality_has_its_own_lambda():
    z = functional.normalize(torch.randn(3, 8, DIM, generator=torch.Generator().manual_seed(0)), dim=2)
    everywhere, half = torch.ones(8, dtype=torch.bool), torch.arange(8) < 4
    seen = {"a": Seen(z[0], everywhere), "b": Seen(z[1], half), "c": Seen(z[2], everywhere)}
    old = {"a": Seen(z[1], everywhere), "b": Seen(z[2], half)}
    settings, lambdas = DistillSettings(weight=2.0, across=3.0), {"a": 1.0, "b": 4.0, "c": 9.0}
    terms = guide.distilled(seen, old, [("a", "b"), ("b", "c")], settings, lambdas)
    soft = settings.temperature, settings.teacher_temperature
    assert list(terms) == ["distill a", "distill b", "across a+b"]
    wanted = {
        "distill a": 2 * 1 * relation_distillation(z[0], z[1], *soft),
        "distill b": 2 * 4 * relation_distillation(z[1][half], z[2][half], *soft),
        "across a+b": 3 * 2.5 * cross_relation_distillation(z[0][half], z[1][half], z[1][half], z[2][half], *soft),
    }
    torch.testing.assert_close(terms, wanted)


def test_contrast_within_a_sensor_teaches_one_that_is_alone(tmp_path):
    """By labels, without a pair and without defects: windows of a label draw together, here those of two kinds each."""
    data, near = scene(sensors=("cam0",)), {}
    data = dataclasses.replace(data, labels=np.array(["x" if name[-1] in "ab" else "y" for name in data.labels]))
    for epochs in (1, 40):
        known = learn(
            tmp_path / str(epochs),
            data,
            losses=LossSettings(labels=True, within=1.0),
            epochs=epochs,
            learning_rate=1e-4 if epochs == 1 else 1e-2,
        )
        z = embedded(known, data, "cam0")
        same = torch.from_numpy(data.labels[:, None] == data.labels[None])
        likeness = z @ z.T
        near[epochs] = float(likeness[same].mean() - likeness[~same].mean())
    assert near[40] > near[1] + 0.3
    assert all(list(terms) == ["within:cam0"] for terms in log(tmp_path / "40"))


def test_contrast_within_needs_labels():
    with pytest.raises(ValueError, match="labels = true"):
        LossSettings(within=1.0)


def test_a_continued_optimiser_begins_where_the_parent_ended(tmp_path):
    """Its count of steps goes on, its moments are the parent's; a rotated head begins anew."""
    for name, settings in {"held": rule(), "rotated": rule("rotate", epsilon=1e-2)}.items():
        parent = learn(tmp_path / name, scene(), protection=settings)
        steps = parent.stage.counters.steps
        assert {float(x) for key, x in parent.tensors.optimiser.items() if key.endswith("/step")} == {steps}
        for way, first in (("fresh", 0), ("continued", 0 if name == "rotated" else steps)):
            child = learn(tmp_path / f"{name} {way}", scene(1), parent, optimiser=way, protection=settings)
            told = {float(x) for key, x in child.tensors.optimiser.items() if key.endswith("/step")}
            assert told == {first + child.stage.counters.steps}


def test_terms_come_in_the_order_of_the_sensors():
    """A set's order is another in every process: a resumed sum would be of other bits."""
    names = [f"sensor{number}" for number in range(12)]
    z = functional.normalize(torch.randn(6, DIM, generator=torch.Generator().manual_seed(0)), dim=1)
    everywhere = torch.ones(6, dtype=torch.bool)
    old = checkpoint.build({"camera": FeaturesPrepare(WIDTH, "ca" * 32)}, DIM, {}, {}).eval()
    built = guide.Guide(plan(distill=DistillSettings(weight=1.0)), old, old, ALONE)
    inputs = {name: ("camera", torch.randn(6, WIDTH), everywhere) for name in names}
    with torch.no_grad():
        terms = built.terms({name: Seen(z, everywhere) for name in names}, inputs, torch.arange(6), [])
    assert list(terms) == [f"distill {name}" for name in names]


# Replay


def test_replay_keeps_as_many_moments_of_each_stage_and_label_as_there_are_to_have(tmp_path):
    parent, kept = None, {}
    for number in (1, 2, 3):
        data = scene(number - 1)
        parent = learn(tmp_path / str(number), data, parent, replay=ReplaySettings(size=25), losses=LABELS)
        replay = loaded(tmp_path / str(number)).tensors.replay
        count = Counter(replay.keys)
        assert len(replay.keys) == 25
        assert len(count) == 4 * number
        assert max(count.values()) - min(count.values()) <= 1
        learned, _ = data.split(0.2)
        for row, key in enumerate(replay.keys):
            stage, _, label = key.partition("/")
            windows = {sensor: replay.inputs[sensor][row].numpy().tobytes() for sensor in KINDS}
            if int(stage) == number:
                place = [data.views["cam0"].inputs[k].tobytes() for k in learned].index(windows["cam0"])
                assert data.labels[learned[place]] == label
                assert all(data.views[sensor].inputs[learned[place]].tobytes() == x for sensor, x in windows.items())
            else:
                assert tuple(windows.values()) in kept[number - 1]  # what was kept before, whole
        kept[number] = {tuple(replay.inputs[s][row].numpy().tobytes() for s in KINDS) for row in range(25)}
        assert all(bool(present.all()) for present in replay.present.values())


@pytest.mark.parametrize("size", [1, 3, 500])
def test_replay_never_exceeds_its_size_and_may_hold_all(tmp_path, size):
    parent = None
    for number in (1, 2):
        parent = learn(tmp_path / str(number), scene(number - 1), parent, replay=ReplaySettings(size=size))
        stage = checkpoint.load_stage(tmp_path / str(number))
        assert len(stage.replay) == min(size, 48 * number)
    last = learn(tmp_path / "3", scene(2), parent)
    assert last.stage.replay == []  # a plan without replay keeps none
    assert last.tensors.replay is None


def test_replayed_moments_are_shown_again_and_only_they_are_not_forgotten(tmp_path):
    old, new = scene(), scene(1)
    found = {}
    for size in (0, 40):
        settings = {"replay": ReplaySettings(size=size, share=1.0), "protection": rule("none"), "epochs": 12}
        parent = learn(tmp_path / f"{size}-1", old, **settings, learning_rate=1e-2)
        child = learn(tmp_path / f"{size}-2", new, parent, **settings, learning_rate=1e-2)
        found[size] = recall(child, old)
        rows = [row for row in child.stage.ledger if row.stage == 2]
        assert {row.batch for row in rows} == {16 + min(size, 16)}
        assert {row.k_t for row in rows} == {0.5 if size else 1.0}
    assert found[40] > found[0] + 0.1


def test_a_sensor_that_a_stage_lacks_is_kept_as_absent(tmp_path):
    """And one that comes later is absent in what was kept before; such moments are replayed for what they have."""
    parent = learn(tmp_path / "1", scene(0, ("cam0", "mic0")), replay=ReplaySettings(size=8))
    parent = learn(tmp_path / "2", scene(1, ("cam0", "pump0")), parent, replay=ReplaySettings(size=8))
    replay = loaded(tmp_path / "2").tensors.replay
    early = torch.tensor([key.startswith("1/") for key in replay.keys])
    assert int(early.sum()) == 4
    assert bool(replay.present["cam0"].all())
    assert replay.present["mic0"].tolist() == early.tolist()
    assert replay.present["pump0"].tolist() == (~early).tolist()
    assert learn(tmp_path / "3", scene(2), parent, replay=ReplaySettings(size=8)).stage.stage == 3


def test_the_bound_on_forgetting_holds_where_labelled_moments_are_replayed(tmp_path):
    settings = {"replay": ReplaySettings(size=24), "losses": LABELS, "distill": DistillSettings(weight=1.0)}
    child = learn(tmp_path / "2", scene(1), learn(tmp_path / "1", scene(), **settings), **settings)
    for row in child.stage.ledger[3:]:
        assert row.monitor.n_b == 24
        assert row.bound.held


# Protection


def drifted(parent, child, data):
    """Largest change of the unit embeddings of windows of old modalities."""
    return max(float(np.abs(embedded(parent, data, s) - embedded(child, data, s)).max()) for s in data.views)


def test_old_embeddings_stay_while_new_ones_are_learned(tmp_path):
    settings = {"epochs": 12, "learning_rate": 1e-2}
    old, new = scene(), scene(1)
    parent = learn(tmp_path / "one", old, **settings)
    free = learn(tmp_path / "free", new, parent, protection=rule("none"), **settings)
    assert drifted(parent, free, old) > 0.1
    assert all(value > 1e-2 for value in free.stage.certificate.embedding_drift.values())
    assert free.stage.capacity == {}
    for name in ("hold", "rotate"):
        kept = learn(tmp_path / name, new, parent, protection=rule(name, epsilon=0.0, drift_budget=1e-3), **settings)
        assert kept.stage.passed
        assert drifted(parent, kept, old) < 1e-3
        assert recall(kept, new) > recall(parent, new) + 0.2
        assert recall(kept, old) == recall(parent, old)
        assert all(value < 1e-4 for value in kept.stage.certificate.embedding_drift.values())
        assert kept.stage.capacity.keys() == set(KINDS.values())
        assert all(0 < share < 0.5 for share in kept.stage.capacity.values())


def test_what_epsilon_leaves_free_moves_no_further_than_the_drift_budget(tmp_path):
    parent = learn(tmp_path / "one", scene())
    settings = {"epochs": 8, "learning_rate": 3e-2, "protection": rule(epsilon=0.3, drift_budget=0.03)}
    child = learn(tmp_path / "two", scene(1), parent, **settings)
    for value in child.stage.certificate.embedding_drift.values():
        assert 0.02 < value <= 0.03
    assert child.stage.passed


def test_dual_protection_keeps_inner_products_of_old_windows_and_lets_embeddings_go(tmp_path):
    old = scene()
    parent = learn(tmp_path / "one", old)
    child = learn(tmp_path / "two", scene(1), parent, protection=rule(sides="dual", epsilon=0.0), epochs=4)
    assert parent.stage.pairs == [("camera", "microphone"), ("camera", "series"), ("microphone", "series")]

    def outputs(stage, sensor):
        encoder = stage.tensors.encoders[KINDS[sensor]]
        x = torch.from_numpy(evaluate.embed(encoder, old.views[sensor].inputs, with_head=False))
        with torch.no_grad():
            return encoder.head(x).double()

    for a, b in old.pairs():
        was, now = (outputs(stage, a) @ outputs(stage, b).T for stage in (parent, child))
        assert float((now - was).norm() / was.norm()) < 1e-5
    assert drifted(parent, child, old) > 0.05
    assert max(child.stage.certificate.similarity_drift.values()) < 1e-5


@pytest.mark.parametrize("name", ["published", "ewc"])
def test_a_rule_that_only_slows_down_forgets_less_than_none(tmp_path, name):
    """The reference's rule leaves old directions to the optimiser; ewc draws back, the more the stronger."""
    settings = {"epochs": 12, "learning_rate": 1e-2}
    old, new = scene(), scene(1)
    protection = rule(name, strength=1e6)
    parent = learn(tmp_path / "one", old, protection=protection, **settings)
    kept = learn(tmp_path / "kept", new, parent, protection=protection, **settings)
    free = learn(tmp_path / "free", new, parent, protection=rule("none"), **settings)
    drift = [sum(stage.stage.certificate.embedding_drift.values()) for stage in (kept, free)]
    assert drift[0] < 0.7 * drift[1]


SETTINGS_OF_A_LACK = {
    name: OPTIONS[name].settings
    for name in ("plain", "rotate", "published", "ewc", "none", "dual", "teacher", "co2l", "fixed", "solved")
} | {"solved by labels": OPTIONS["solved by labels"].settings}


@pytest.mark.parametrize("name", SETTINGS_OF_A_LACK)
def test_an_absent_modality_s_encoder_stays_to_the_bit_and_a_warning_says_so(tmp_path, name):
    settings = SETTINGS_OF_A_LACK[name]
    parent = learn(tmp_path / "one", scene(), **settings)
    child = learn(tmp_path / "two", scene(1, ("cam0", "mic0")), parent, **settings)
    assert {weight.split(".")[0] for weight in moved(parent, child)} == {"camera", "microphone"}
    assert child.stage.warnings == ["series: not in this stage's recordings; its encoder stays as it is"]
    assert child.stage.certificate.embedding_drift["series"] == 0
    back = learn(tmp_path / "three", scene(2), child, **settings)
    assert any(weight.startswith("series.head") for weight in moved(child, back))


def test_an_absent_modality_s_trunk_and_norms_stay_too(tmp_path):
    """Under the rule that lets everything move."""
    settings = {"encoders": EncoderSettings(move="all"), "protection": rule("none")}
    parent = learn(tmp_path / "one", waves(), **settings)
    child = learn(tmp_path / "two", scene(0, ("cam0", "mic0")), parent, **settings)
    assert moved(parent, child) == set()
    assert child.stage.prepare.keys() == {"camera", "microphone", "series"}


@pytest.mark.parametrize("name", ["rotate", "published", "ewc", "none"])
def test_a_first_stage_is_unconstrained(tmp_path, name):
    held, other = (
        learn(tmp_path / kind, scene(), protection=rule(kind, epsilon=0.0, drift_budget=1e-9))
        for kind in ("hold", name)
    )
    assert equal(weights(held), weights(other))
    for found in (held, other):
        assert found.stage.certificate.embedding_drift == found.stage.certificate.similarity_drift == {}
        assert found.stage.capacity == {}
        assert found.stage.passed
    begun = work(tmp_path / "new", scene())
    assert moved(room.Parent(held.stage, checkpoint.Tensors(room.start(begun))), held)


def weak_and_strong(part, count=120):
    """Old windows fill four directions with power and the others with a little: strictly protected, nothing is free."""
    rng = np.random.default_rng([4, part])
    state, views = rng.normal(size=(count, 4)), {}
    for sensor in ("cam0", "mic0"):
        x = 0.05 * rng.normal(size=(count, WIDTH))
        x[:, 4 * part : 4 * part + 4] += state @ np.random.default_rng([5, ord(sensor[0])]).normal(size=(4, 4))
        views[sensor] = View(KINDS[sensor], x.astype(np.float32), np.ones(count, np.bool_))
    return dataset(views, {KINDS[s]: FeaturesPrepare(WIDTH, BACKBONES[KINDS[s]]) for s in views})


@pytest.mark.slow
def test_the_smallest_epsilon_with_which_a_stage_can_learn_is_chosen(tmp_path):
    settings = {"epochs": 3, "learning_rate": 3e-2}
    parent = learn(tmp_path / "one", weak_and_strong(0), **settings)
    before = hashes(tmp_path / "one")
    wanted = rule(plasticity=0.5, epsilon=0.0)
    begun, clock = work(tmp_path / "two", weak_and_strong(1), parent, protection=wanted, **settings), SimulatedClock()
    free = dataclasses.replace(begun, plan=room.replaced(begun.plan, rule="none", plasticity=0.0))
    target = 0.5 * room.learned(free, clock, lambda *told: None)
    reached = {
        epsilon: room.learned(dataclasses.replace(begun, epsilon=epsilon), clock, lambda *told: None) >= target
        for epsilon in EPSILONS[:-1]
    }
    child = learn(tmp_path / "two", weak_and_strong(1), parent, protection=wanted, **settings)
    assert not reached[1e-4]
    assert child.stage.epsilon == min(epsilon for epsilon in reached if reached[epsilon]) == 0.1
    again = learn(tmp_path / "again", weak_and_strong(1), loaded(tmp_path / "one"), protection=wanted, **settings)
    assert again.stage == child.stage
    assert hashes(tmp_path / "one") == before
    given = msgspec.structs.replace(wanted, plasticity=0.0, epsilon=0.1)
    same = learn(tmp_path / "given", weak_and_strong(1), parent, protection=given, **settings)
    assert equal(weights(same), weights(child))  # trials leave nothing behind


def test_where_no_pair_can_be_measured_the_plan_s_own_epsilon_stays(tmp_path):
    parent = learn(tmp_path / "one", scene())
    alone = scene(1, ("cam0",))
    child = learn(tmp_path / "two", alone, parent, defects=DefectSettings(1.0, 0.6), protection=rule(plasticity=0.9))
    assert child.stage.epsilon == rule().epsilon


def test_exhausted_capacity_is_told_before_training(tmp_path):
    """Old windows that fill every direction, of which none may be touched: nothing new can be learned."""
    parent = learn(tmp_path / "one", weak_and_strong(0))
    begun = work(tmp_path / "two", weak_and_strong(1), parent, protection=rule(epsilon=0.0))
    (told,) = room.told_before(begun, *room.course_of(begun, room.start(begun)))
    assert told.startswith("camera, microphone: capacity exhausted")
    assert "raise protection.epsilon" in told
    assert not (tmp_path / "two").exists()
    child = learn(tmp_path / "two", weak_and_strong(1), parent, protection=rule(epsilon=0.0))
    assert child.stage.warnings == [told]
    assert set(child.stage.capacity.values()) == {1.0}
    assert drifted(parent, child, weak_and_strong(1)) < 1e-5
    roomier = learn(tmp_path / "three", weak_and_strong(1), parent, protection=rule(epsilon=0.1))
    assert roomier.stage.warnings == []


def test_an_exhausted_layer_of_a_trunk_is_told_by_name(tmp_path):
    settings = {"encoders": EncoderSettings(move="all"), "protection": rule(epsilon=0.0)}
    parent = learn(tmp_path / "one", waves(), **settings)
    child = learn(tmp_path / "two", waves(1), parent, **settings)
    (told,) = child.stage.warnings
    assert told.startswith("series body.0, series body.3: capacity exhausted")
    assert "series.trunk.body.0.weight" not in moved(parent, child)


# Encoders


def test_a_fixed_trunk_stays_what_it_was_drawn_as(tmp_path):
    parent = learn(tmp_path / "one", waves(), encoders=FIXED)
    child = learn(tmp_path / "two", waves(1), parent)  # a later plan need not say it again
    assert child.stage.widths == {"series": 32}
    assert moved(parent, child) == {"series.head.weight"}
    other = learn(tmp_path / "other", waves(2), encoders=FIXED, seed=9)
    drawn = [weights(known)["series.trunk.directions"] for known in (parent, child, other)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


LAYERS = ["trunk.body.0", "trunk.body.3", "trunk.body.6", "trunk.body.9"]


@pytest.mark.parametrize(("move", "layers"), [("head", []), ("last", LAYERS[2:]), ("all", LAYERS)])
def test_only_what_the_plan_lets_move_moves(tmp_path, move, layers):
    parent = learn(tmp_path / "one", waves(), encoders=EncoderSettings(move="all"))
    protection = rule(epsilon=1e-2)
    child = learn(tmp_path / "two", waves(1), parent, encoders=EncoderSettings(move=move), protection=protection)
    assert moved(parent, child) == {f"series.{layer}.weight" for layer in [*layers, "head"]}
    assert ("series trunk" in child.stage.certificate.embedding_drift) == bool(layers)
    assert child.stage.certificate.embedding_drift.get("series trunk", 0) < 0.1


def test_a_stage_in_between_that_moves_heads_alone_still_adds_its_layers_moments(tmp_path):
    every, head = EncoderSettings(move="all"), EncoderSettings(move="head")
    parent, count, second = None, 0, 0
    for number, encoders in enumerate((every, head, every), 1):
        parent = learn(tmp_path / str(number), waves(number), parent, encoders=encoders)
        seen = loaded(tmp_path / str(number)).tensors.layers["series"]
        assert sorted(seen) == [layer.removeprefix("trunk.") for layer in LAYERS]
        x = torch.from_numpy(np.concatenate([v.inputs[:48] for v in waves(number).views.values()]))
        scaled = parent.tensors.encoders["series"].trunk.scale(x)
        patches = functional.pad(scaled, (3, 3)).unfold(2, 7, 2)[:, 0].reshape(-1, 7).double()
        count, second = count + len(patches), second + patches.T @ patches
        assert seen["body.0"].count == count
        torch.testing.assert_close(seen["body.0"].second[0], second / count)  # over all stages
    assert "series trunk" in parent.stage.certificate.embedding_drift


def test_a_trunk_that_moved_unwatched_has_no_drift_in_the_certificate(tmp_path):
    """Nobody kept what its layers saw: to certify a drift of 0 would be a lie."""
    settings = {"encoders": EncoderSettings(move="all"), "protection": rule("none")}
    parent = learn(tmp_path / "one", waves(), **settings)
    child = learn(tmp_path / "two", waves(1), parent, **settings)
    assert "series.trunk.body.0.weight" in moved(parent, child)
    assert child.stage.certificate.embedding_drift.keys() == {"series"}


# Adapters


def trunk_outputs(parent, data):
    return evaluate.embed(parent.tensors.encoders["series"], data.views["pump0"].inputs, with_head=False)


def held_out_recall(parent, data):
    """Mean recall@1 among few of held-out moments, both ways."""
    measured = evaluate.measure(parent.tensors.encoders, data, data.split(plan().held_out)[1])
    return float(np.mean([found.recall_1_few for found in measured.retrieval]))


def test_adapters_learn_what_is_new_and_leave_what_old_windows_gave(tmp_path):
    """Twice in a row; everything below them is the first stage's to the bit."""
    settings = {"encoders": ADAPTERS, "protection": rule(epsilon=1e-2), "epochs": 12, "learning_rate": 1e-2}
    first = parent = learn(tmp_path / "1", waves(count=120), **settings)
    free = learn(tmp_path / "free", waves(2, count=120), first, **{**settings, "protection": rule("none")})
    base = checkpoint.identities(first.stage, first.tensors.encoders)["series"]
    old = trunk_outputs(first, waves())
    for number in (2, 3):
        child = learn(tmp_path / str(number), waves(number, count=120), parent, **settings)
        assert all("lora" in name for name in moved(parent, child))
        assert child.stage.adapters["series"].base == base
        assert 0 < child.stage.certificate.embedding_drift["series trunk"] < 0.05
        parent = child
    assert np.linalg.norm(trunk_outputs(parent, waves()) - old) < 0.05 * np.linalg.norm(old)
    assert np.linalg.norm(trunk_outputs(free, waves()) - old) > 0.2 * np.linalg.norm(old)
    for learned in (loaded(tmp_path / "2"), free):
        assert held_out_recall(learned, waves(2, count=120)) > held_out_recall(first, waves(2, count=120)) + 0.2


def test_a_base_that_moved_below_adapters_fails_its_gate(tmp_path, monkeypatch):
    settings = {"encoders": ADAPTERS, "protection": rule(epsilon=1e-2)}
    parent = learn(tmp_path / "1", waves(), **settings)
    monkeypatch.setattr("trainer.branches.let_learn", lambda trunk: trunk.requires_grad_(True))
    child = learn(tmp_path / "2", waves(1), parent, **settings)
    assert [gate.name for gate in child.stage.certificate.gates if not gate.passed] == ["base changed series"]


def test_a_stage_that_moves_a_trunk_takes_its_adapters_in(tmp_path):
    """Before its first step: what they learned stays, what they stood on does not."""
    settings = {"encoders": ADAPTERS, "protection": rule("none")}
    parent = learn(tmp_path / "2", waves(1), learn(tmp_path / "1", waves(), **settings), **settings)
    free = {"protection": rule("none"), "learning_rate": 1e-12}
    merged = learn(tmp_path / "3", waves(1), parent, encoders=EncoderSettings(move="last"), **free)
    assert merged.stage.adapters == {}
    assert not any("lora" in name for name in weights(merged))
    data = waves(1)
    np.testing.assert_allclose(trunk_outputs(merged, data), trunk_outputs(parent, data), rtol=1e-3, atol=1e-4)
    head = learn(tmp_path / "head", waves(1), parent)
    assert moved(parent, head) == {"series.head.weight"}
    assert head.stage.passed
    assert head.stage.adapters["series"].base != parent.stage.adapters["series"].base


def test_adapters_that_cannot_be_are_refused_with_their_mend(tmp_path):
    parent = learn(tmp_path / "1", waves(), encoders=ADAPTERS)
    child = learn(tmp_path / "2", waves(1), parent, encoders=ADAPTERS)
    wider = EncoderSettings(move="adapters", rank=4)
    with pytest.raises(ConfigError, match=r"series carries adapters of rank 1; set rank = 1"):
        learn(tmp_path / "3", waves(1), child, encoders=wider)
    unwatched = learn(tmp_path / "unwatched", waves())
    with pytest.raises(ConfigError, match=r'kept no moments of its inputs; .* \[encoders\] move = "adapters"'):
        learn(tmp_path / "3", waves(1), unwatched, encoders=ADAPTERS)
    fixed = learn(tmp_path / "fixed", waves(), encoders=FIXED)
    with pytest.raises(ConfigError, match=r"series has no layer that adapters could stand beside"):
        learn(tmp_path / "3", waves(1), fixed, encoders=ADAPTERS)
    with pytest.raises(ValueError, match="adapters leave as they are"):
        plan(encoders=EncoderSettings(move={"series": "adapters"}), heads=SOLVED).__post_init__()


# Heads


def features(parent, data, rows):
    """The homogeneous inputs of each sensor's head, float64."""
    return {
        sensor: np.c_[
            evaluate.embed(parent.tensors.encoders[view.modality], view.inputs[rows], with_head=False).astype(float),
            np.ones(len(rows)),
        ]
        for sensor, view in data.views.items()
    }


@pytest.mark.parametrize("by", ["labels", "pairs"])
def test_a_stage_in_between_that_steps_still_adds_its_windows_to_the_sums(tmp_path, by):
    """What is solved after it is what would have been solved after three solved stages."""
    free, losses = rule("none"), LossSettings(labels=by == "labels")
    sums = {}
    for way, (heads, middle) in {
        "all solved": (SOLVED, losses),
        "one stepped": (HeadSettings(), LossSettings()),
    }.items():
        parent = learn(tmp_path / f"{way} 1", scene(), heads=SOLVED, losses=losses, protection=free)
        parent = learn(tmp_path / f"{way} 2", scene(1), parent, heads=heads, losses=middle, protection=free)
        assert parent.stage.labels == loaded(tmp_path / f"{way} 2").stage.labels
        last = learn(tmp_path / f"{way} 3", scene(2), parent, heads=SOLVED, losses=losses, protection=free)
        sums[way] = last.tensors.sums
    first, second = sums.values()
    assert first.labels == second.labels
    assert len(first.labels) == (12 if by == "labels" else 0)
    for kind in ("by_label", "crossed"):
        torch.testing.assert_close(getattr(first, kind), getattr(second, kind), rtol=0, atol=0)
    assert first.counts == second.counts


def test_sums_of_pairs_cannot_be_solved_by_labels_nor_the_other_way(tmp_path):
    for losses, other, told in (
        (LABELS, LossSettings(), "solves heads by pairs, but the parent kept sums of labels; set .* labels = true"),
        (LossSettings(), LABELS, "solves heads by labels, but the parent kept sums of pairs; set .* labels = false"),
    ):
        parent = learn(tmp_path / str(losses.labels), scene(), heads=SOLVED, losses=losses)
        with pytest.raises(ConfigError, match=told):
            room._enough(work(tmp_path / "two", scene(1), parent, heads=SOLVED, losses=other))


def test_heads_solved_by_labels_are_those_of_all_stages_windows_at_once(tmp_path):
    """Least squares onto the anchors, by another solver, over the windows of three stages."""
    heads = HeadSettings(fit="moments", ridge=1e-9)
    settings = {"heads": heads, "losses": LABELS, "protection": rule("none"), "encoders": FIXED}
    parent, xs, names = None, [], []
    for number in range(3):
        data = scene(number)
        parent = learn(tmp_path / str(number), data, parent, **settings)
        rows, _ = data.split(0.2)
        xs.append(features(parent, data, rows))
        names += data.labels[rows].tolist()
    assert parent.stage.labels == sorted(set(names))  # in the order of their coming
    assert parent.stage.counters.steps == 0
    assert parent.stage.ledger == []
    targets = solved.anchors(12, DIM).numpy()[[parent.stage.labels.index(name) for name in names]]
    for sensor, modality in KINDS.items():
        x = np.concatenate([part[sensor] for part in xs])
        got = x @ parent.tensors.encoders[modality].head.weight.detach().numpy().T
        np.testing.assert_allclose(got, x @ np.linalg.lstsq(x, targets, rcond=None)[0], atol=1e-4)


def test_heads_solved_without_labels_are_those_of_all_stages_moments_at_once(tmp_path):
    """But for the turn of the space, which the first stage keeps."""
    data, parent = scene(count=90), None
    settings = {"heads": SOLVED, "protection": rule("none"), "encoders": FIXED}
    for number in range(3):
        rows = np.arange(30 * number, 30 * number + 30)
        begun = dataclasses.replace(work(tmp_path / str(number), data, parent, **settings), learn=rows, held=rows)
        parent = learn_stage(begun, SimulatedClock())
    xs, sums = features(parent, data, np.arange(90)), parent.tensors.sums
    for a, b in data.pairs():
        pair = KINDS[a], KINDS[b]
        assert sums.counts[pair] == 90
        np.testing.assert_allclose(sums.crossed[pair], xs[a].T @ xs[b], rtol=1e-9, atol=1e-6)
        np.testing.assert_allclose(parent.tensors.seen[pair[0]].second, xs[a].T @ xs[a] / 90, rtol=1e-9, atol=1e-9)
    heads = solved.to_each_other(parent.tensors.seen, sums, DIM, 1e-3)
    wanted, got = (
        np.concatenate([xs[s] @ weight(KINDS[s]).T for s in KINDS])
        for weight in (
            lambda name: heads[name].numpy(),
            lambda name: parent.tensors.encoders[name].head.weight.detach().double().numpy(),
        )
    )
    np.testing.assert_allclose(got @ got.T, wanted @ wanted.T, atol=1e-4 * np.abs(wanted).max())
    assert recall(parent, data) > 0.5


@pytest.mark.parametrize("losses", [LossSettings(), LABELS], ids=["moments", "labels"])
def test_solved_heads_are_held_to_what_old_windows_were(tmp_path, losses):
    settings = {"heads": SOLVED, "losses": losses}
    parent = learn(tmp_path / "one", scene(), **settings)
    child = learn(tmp_path / "two", scene(1), parent, protection=rule(epsilon=0.0), **settings)
    free = learn(tmp_path / "free", scene(1), parent, protection=rule("none"), **settings)
    assert drifted(parent, child, scene()) < 1e-3
    assert drifted(parent, free, scene()) > 1e-2
    assert recall(child, scene(1)) > recall(parent, scene(1)) + 0.2


def test_solved_heads_are_turned_to_where_old_embeddings_were(tmp_path):
    """No rotation brings old inputs' embeddings nearer: their overlap's trace is its nuclear norm."""
    parent = learn(tmp_path / "one", scene(), heads=SOLVED)
    child = learn(tmp_path / "two", scene(1), parent, heads=SOLVED, protection=rule("none"))
    overlap = 0
    for name, change in child.tensors.changes.items():
        assert change.seen.count == parent.tensors.seen[name].count
        head = child.tensors.encoders[name].head.weight.detach().double()
        overlap = overlap + change.start @ change.seen.second @ head.T
    assert float(torch.trace(overlap)) == pytest.approx(float(torch.linalg.matrix_norm(overlap, "nuc")), rel=1e-5)


def test_each_look_counts_once_more_and_changes_windows(tmp_path):
    stages = {
        looks: learn(tmp_path / str(looks), scene(), heads=HeadSettings(fit="moments", looks=looks)) for looks in (1, 3)
    }
    once, thrice = (stage.tensors.seen["camera"] for stage in stages.values())
    assert (once.count, thrice.count) == (48, 144)
    assert stages[3].tensors.sums.counts["camera", "microphone"] == 144
    assert not torch.allclose(once.second, thrice.second, rtol=1e-4)
    torch.testing.assert_close(once.second, thrice.second, rtol=0, atol=0.05)  # a little noise


def test_a_learned_trunk_is_trained_in_steps_before_its_head_is_solved(tmp_path):
    settings = {"heads": SOLVED, "losses": LABELS}
    data = dataclasses.replace(waves(), labels=np.array(["low", "high"] * (COUNT // 2), np.str_))
    parent = learn(tmp_path / "one", data, **settings)
    begun = room.start(work(tmp_path / "new", data, **settings)).state_dict()
    now = weights(parent)
    assert not torch.equal(begun["series.trunk.body.0.weight"], now["series.trunk.body.0.weight"])
    assert parent.stage.counters.steps == 6
    wanted = solved.to_anchors(parent.tensors.seen["series"], parent.tensors.sums.by_label["series"], DIM, 1e-3)
    torch.testing.assert_close(now["series.head.weight"], wanted.float())
    child = learn(tmp_path / "two", data, parent, **settings)
    assert child.stage.counters.steps == 0  # nothing is left to be trained in steps
    assert moved(parent, child) <= {"series.head.weight"}


# Precision


def test_bfloat16_is_float32_but_for_rounding_and_saves_float32(tmp_path):
    found = {}
    for precision in ("float32", "bfloat16"):
        parent = learn(tmp_path / f"{precision}-1", scene(), precision=precision, epochs=4, learning_rate=1e-2)
        found[precision] = learn(tmp_path / precision, scene(1), parent, precision=precision, epochs=4)
        for tensor in load_file(tmp_path / precision / "weights.safetensors").values():
            assert tensor.dtype in (torch.float32, torch.int64)
    narrow, wide = (np.array([terms["cam0+mic0"] for terms in log(tmp_path / name)]) for name in found)
    assert not np.array_equal(narrow, wide)
    np.testing.assert_allclose(narrow, wide, rtol=0.1)
    assert all(value < 1e-3 for value in found["bfloat16"].stage.certificate.embedding_drift.values())


# What is refused


def put(folder, data, name="line.safetensors"):
    """Write a dataset as a feature file; gives the plan's word for it."""
    sensors = {s: SensorFeatures(view.modality, view.inputs, view.present) for s, view in data.views.items()}
    backbones = {modality: spec.backbone for modality, spec in data.specs.items()}
    file = FeatureFile(sensors, backbones, data.start_ns, data.length_ns, data.hop_ns, data.labels)
    feature_files.write(folder / name, file)
    return {"recordings": [RecordingPart(name)]}


def run(folder, **changes):
    return run_stage(plan(**changes), folder, SimulatedClock())


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """Two stages that others may follow: `one` of features, `heads` of waves whose trunk was never watched."""
    folder = tmp_path_factory.mktemp("grown")
    learn(folder / "heads", waves())
    run(folder, out="one", **put(folder, scene()))
    return folder


def with_nan(folder):
    whole = scene(1)
    whole.views["mic0"].inputs[7, 3] = 12345.0
    recordings = put(folder, whole)
    path = folder / "line.safetensors"
    number, nan = (np.float32(value).tobytes() for value in (12345.0, math.nan))
    assert path.read_bytes().count(number) == 1
    path.write_bytes(path.read_bytes().replace(number, nan))
    return recordings


def other_backbone(folder):
    specs = {**scene().specs, "camera": FeaturesPrepare(WIDTH, "ef" * 32)}
    return put(folder, dataclasses.replace(scene(1), specs=specs))


def with_labels(names):
    return lambda folder: put(folder, dataclasses.replace(scene(1), labels=np.array(names, np.str_)))


def two_cameras(folder):
    return put(folder, scene(1, ("cam0", "pump0"), modalities={"cam0": "camera", "pump0": "camera"}))


NOTHING, MOMENTS_BY_LABEL = [""] * COUNT, {"heads": SOLVED, "losses": LABELS}
REFUSED = {
    "features that are no numbers": (with_nan, {}, RecordingError, "features of mic0 are not finite, first in row 7"),
    "a single moment": (
        lambda folder: put(folder, scene(1, count=2)),
        {"held_out": 0.5},
        RecordingError,
        "gives 1 moments to learn from, at least 8",
    ),
    "a pair of an unknown sensor": (
        lambda folder: put(folder, scene(1)),
        {"pairs": [("cam0", "cam9")]},
        ConfigError,
        "pairs names cam9, which the recordings do not have; they have cam0, mic0, pump0",
    ),
    "a pair that never meets": (
        lambda folder: put(folder, seen_in(seen_in(scene(1), "cam0", slice(0, 20)), "mic0", slice(19, 60))),
        {"pairs": [("mic0", "cam0")]},
        ConfigError,
        "pairs names mic0 and cam0, which have no two common moments",
    ),
    "labels where there are none": (
        with_labels(NOTHING),
        {"losses": LABELS},
        RecordingError,
        "carries no labels .* the plan wants to learn by labels",
    ),
    "labels held out alone": (
        with_labels([*NOTHING[:50], *["late"] * 10]),
        MOMENTS_BY_LABEL,
        RecordingError,
        "carries no labels",
    ),
    "more labels than dimensions": (
        with_labels([str(k % 17) for k in range(COUNT)]),
        MOMENTS_BY_LABEL,
        ConfigError,
        "17 labels of all stages need as many dimensions, embeddings have 16",
    ),
    "another backbone than the parent's": (
        other_backbone,
        {"parent": "one"},
        ConfigError,
        "camera .*efefefefefef, but cacacacacaca .*the parent",
    ),
    "another dimension than the parent's": (
        lambda folder: put(folder, scene(1)),
        {"parent": "one", "dim": 32},
        ConfigError,
        "dim is 32, but the parent's embeddings have 16; set dim = 16",
    ),
    "a sensor of another modality than before": (
        lambda folder: put(folder, scene(1, modalities={**KINDS, "cam0": "microphone"})),
        {"parent": "one"},
        RecordingError,
        "calls cam0 a microphone, the parent a camera",
    ),
    "one window of a new modality": (
        lambda folder: put(folder, seen_in(scene(1), "pump0", slice(3, 4))),
        {},
        RecordingError,
        "a single good series window to learn from",
    ),
    "heads solved from one kind of sensor": (
        two_cameras,
        {"heads": SOLVED, "encoders": FIXED},
        RecordingError,
        "no two sensors of different kinds with common moments",
    ),
    "ewc after a parent without": (
        lambda folder: put(folder, scene(1)),
        {"parent": "one", "protection": rule("ewc")},
        ConfigError,
        'protection.rule = "ewc" needs what the parent remembered',
    ),
    "the published rule after a parent without": (
        lambda folder: put(folder, scene(1)),
        {"parent": "one", "protection": rule("published")},
        ConfigError,
        'protection.rule = "published" needs what the parent remembered',
    ),
    "a rate at which weights have no norm": (
        lambda folder: put(folder, scene(1)),
        {"parent": "one", "protection": rule("none"), "learning_rate": 1e30},
        GateError,
        r"step 5: camera\.head\.weight has grown until its norm is no number; lower learning_rate",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_learned_from_is_refused_by_name_and_nothing_is_saved(grown, tmp_path, name):
    made, changes, error, told = REFUSED[name]
    before = hashes(grown / "one")
    if changes.get("parent"):
        changes = {**changes, "parent": str(grown / "one")}
    with pytest.raises(error, match=told) as refused:
        run(tmp_path, out="new", **made(tmp_path), **changes)
    assert refused.value.mend
    assert not (tmp_path / "new" / "stage.json").exists()
    assert hashes(grown / "one") == before


def test_feature_files_train_a_later_stage_that_leaves_its_parent_alone(grown, tmp_path):
    before = hashes(grown / "one")
    child = run(tmp_path, out="two", parent=str(grown / "one"), losses=LABELS, **put(tmp_path, scene(1)))
    assert child.passed
    assert child.stage == 2
    assert hashes(grown / "one") == before


@pytest.mark.parametrize("move", ["last", "all", {"series": "all"}])
@pytest.mark.parametrize("kept_by", ["hold", "rotate"])
def test_a_trunk_whose_old_inputs_nobody_kept_may_not_move(grown, tmp_path, move, kept_by):
    before = hashes(grown / "heads")
    with pytest.raises(ConfigError, match=r"series's body\.\d to move, but the parent kept no moments") as refused:
        learn(
            tmp_path / "new",
            waves(1),
            loaded(grown / "heads"),
            encoders=EncoderSettings(move=move),
            protection=rule(kept_by),
        )
    assert "train the parent with [encoders] move = " in refused.value.mend
    assert not (tmp_path / "new").exists()
    assert hashes(grown / "heads") == before


WRONG = {
    'fit = "moments"': ('[heads]\nfit = "moments"\n[protection]\nrule = "ewc"\n', "goes with protection.rule"),
    "moments with ewc": ('[heads]\nfit = "moments"\n[protection]\nrule = "ewc"\n', "goes with protection.rule"),
    "a batch of one": ("batch = 1\n", "batch at least 4"),
    "dual and rotated": ('[protection]\nrule = "rotate"\nsides = "dual"\n', "goes with rule"),
    "a teacher that never moves": ("[teacher]\nmomentum = 1.0\n", "momentum must be at least 0 and below 1"),
    "a floor above the cap": ("[distill]\nfloor = 2.0\ncap = 1.0\n", "floor must be above 0 and at most cap"),
    "a buffer below nothing": ("[replay]\nsize = -1\n", "size must be at least 0"),
    "a kind of movement nobody knows": ('[encoders]\nmove = "tail"\n', "tail"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_plan_that_contradicts_itself_is_refused_as_it_is_read(name):
    text, told = WRONG[name]
    with pytest.raises(ConfigError, match=told):
        config.loads(f'out = "x"\n{text}[[recordings]]\npath = "line"\n', Plan)


def test_a_loss_that_is_no_number_stops_the_stage_and_names_the_step(tmp_path):
    with pytest.raises(GateError, match=r"^step 1: the loss is no number \(pump0\+pump1\); lower learning_rate"):
        learn(tmp_path / "one", waves(), learning_rate=1e30)
    assert not (tmp_path / "one" / "stage.json").exists()


@pytest.mark.parametrize("name", ["plain", "teacher", "co2l", "defects", "solved"])
def test_a_batch_may_hold_a_single_window_of_a_sensor_or_none(tmp_path, name):
    """Moments that lack a sensor are left out of its terms; alone, a window has nothing to be told from."""
    parent, settings = None, OPTIONS[name].settings
    for number in (0, 1):
        data = seen_in(scene(number), "pump0", [1, 30, 50, 51])
        parent = learn(tmp_path / str(number), data, parent, **settings)
        assert checkpoint.load_stage(tmp_path / str(number)) == parent.stage
        assert all(bool(torch.isfinite(weight).all()) for weight in weights(parent).values())


def test_batch_norm_is_not_asked_for_the_deviation_of_one_window(tmp_path):
    """Sixteen samples end as one value a channel."""
    found = learn(tmp_path / "one", seen_in(waves(samples=16), "pump1", [1, 30, 50, 51]))
    assert all(bool(torch.isfinite(weight).all()) for weight in weights(found).values())


@pytest.mark.parametrize("later", [False, True])
def test_a_sensor_with_good_windows_among_those_held_out_alone_is_measured_and_not_learned(tmp_path, later):
    parent = learn(tmp_path / "one", scene(2)) if later else None
    modalities = {**KINDS, "aux0": "camera"}
    data = seen_in(scene(0, ("aux0", *KINDS), modalities=modalities), "aux0", slice(50, 60))
    found = learn(tmp_path / "two", data, parent)
    assert checkpoint.load_stage(tmp_path / "two").sensors["aux0"] == "camera"
    assert found.tensors.seen["camera"].count == 48 * (1 + later)
    assert {"aux0", "cam0"} <= {result.asked for result in found.stage.metrics.retrieval}


def test_a_pair_that_nothing_held_out_measures_fails_its_gate_and_the_stage_can_be_read(tmp_path):
    """NaN would stand in stage.json as null, which no reader takes for a number."""
    learn(tmp_path / "one", seen_in(scene(), "pump0", slice(0, 40)))
    stage = checkpoint.load_stage(tmp_path / "one")
    failed = {gate.name for gate in stage.certificate.gates if not gate.passed}
    assert failed == {f"retrieval {a} to {b}" for s in ("cam0", "mic0") for a, b in ((s, "pump0"), ("pump0", s))}
    with pytest.raises(GateError, match="gate `retrieval cam0 to pump0` is 0, must be at least 1"):
        checkpoint.must_pass(stage, tmp_path / "one")


# Over the budget


def test_a_stage_over_its_drift_budget_is_saved_as_failed_and_goes_nowhere(grown, tmp_path):
    settings = {"protection": ProtectionSettings(rule="none", drift_budget=0.01), "learning_rate": 1e-2}
    run(tmp_path, out="two", parent=str(grown / "one"), **settings, **put(tmp_path, scene(1)))
    stage, before = checkpoint.load_stage(tmp_path / "two"), hashes(tmp_path / "two")
    assert not stage.passed
    assert {gate.name for gate in stage.certificate.gates if not gate.passed} == {
        f"embedding drift {modality}" for modality in KINDS.values()
    }
    told = r"gate `embedding drift camera` is 0\.\d+, must be at most 0\.01"
    with pytest.raises(GateError, match=told):
        checkpoint.must_pass(stage, tmp_path / "two")
    with pytest.raises(GateError, match=told):
        run(tmp_path, out="three", parent="two", **put(tmp_path, scene(2)))
    with pytest.raises(GateError, match=told):
        bundle.build(tmp_path / "two", tmp_path / "release", version=1)
    assert not (tmp_path / "three").exists()
    assert not (tmp_path / "release").exists()
    assert hashes(tmp_path / "two") == before
