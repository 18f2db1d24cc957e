"""Old and new encoders side by side: trainer.compatibility and trainer.certify, and how a stage's gate is waived."""

from __future__ import annotations

import copy
import doctest
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner

from deploy.waivers import holds
from export import waivers
from lineside.clock import NS, SimulatedClock
from lineside.errors import ConfigError, GateError, RecordingError, ReleaseError
from lineside.features import FeaturesPrepare
from lineside.release import Gate, certified
from tests import tiny_encoder
from trainer import certify, checkpoint, compatibility, feature_files
from trainer.__main__ import app
from trainer.compatibility import Trial, Version
from trainer.data import Dataset, View
from trainer.feature_files import FeatureFile, SensorFeatures
from trainer.plan import BackwardSettings, DefectSettings, GateSettings, Plan, ProtectionSettings, RecordingPart
from trainer.stage import run_stage

pytestmark = pytest.mark.slow

WIDTH, DIM, COUNT = 16, 8, 360
SPECS = {name: FeaturesPrepare(WIDTH, letter * 64) for name, letter in (("camera", "a"), ("microphone", "b"))}
SENSORS = {"cam0": "camera", "mic0": "microphone"}


def scene(seed: int, count: int = COUNT, fault: float = 0.0) -> Dataset:
    """Moments whose hidden state both sensors show, each in its own way and with noise; a `fault` moves the camera."""
    rng = np.random.default_rng([seed, count])
    state = rng.normal(size=(count, DIM))
    views = {}
    for place, (sensor, modality) in enumerate(SENSORS.items()):
        shown = state @ np.random.default_rng(place).normal(size=(DIM, WIDTH)) + 0.2 * rng.normal(size=(count, WIDTH))
        shown[:, 0] += fault * (sensor == "cam0")
        views[sensor] = View(modality, shown.astype(np.float32), np.ones(count, np.bool_))
    start = np.arange(count, dtype=np.int64) * NS
    return Dataset(views, dict(SPECS), start, np.zeros(count, np.int64), NS, NS, {}, [])


def write(path, dataset):
    sensors = {name: SensorFeatures(view.modality, view.inputs, view.present) for name, view in dataset.views.items()}
    backbones = {modality: spec.backbone for modality, spec in SPECS.items()}
    file = FeatureFile(sensors, backbones, dataset.start_ns, dataset.length_ns, dataset.hop_ns, dataset.labels)
    feature_files.write(path, file)


def plan(**changes):
    settings = {
        "epochs": 20,
        "dim": DIM,
        "defects": DefectSettings(own=0, together=0),
        "gates": GateSettings(retrieval_times_chance=0, spread=1.0, retention_loss=1.0),
        "recordings": [RecordingPart("first.safetensors")],
        **changes,
    }
    return Plan(**settings)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """`one`; `two`, which follows it protected; `free`, which follows it and forgets."""
    folder = tmp_path_factory.mktemp("stages")
    for seed, name in enumerate(("first", "second", "unseen")):
        write(folder / f"{name}.safetensors", scene(seed, 1000 if name == "unseen" else COUNT))
    write(folder / "other.safetensors", turned(scene(5)))
    later = {"parent": "one", "recordings": [RecordingPart("second.safetensors")]}
    other = {"parent": "one", "recordings": [RecordingPart("other.safetensors")]}
    free = ProtectionSettings(rule="none", drift_budget=1e9)
    run_stage(plan(out="one"), folder, SimulatedClock())
    run_stage(plan(out="two", **later), folder, SimulatedClock())
    run_stage(plan(out="free", protection=free, learning_rate=0.02, **other), folder, SimulatedClock())
    return folder


def turned(dataset: Dataset) -> Dataset:
    """The same, seen through cameras and microphones whose features mean something else."""
    views = {name: replace(view, inputs=np.roll(view.inputs, 3, axis=1)) for name, view in dataset.views.items()}
    return replace(dataset, views=views)


@pytest.fixture(scope="module")
def trial() -> Trial:
    bank, normal = compatibility.in_turn(scene(9, 600))
    return Trial(bank, normal, scene(10, 200, fault=6.0))


def test_doctests():
    assert doctest.testmod(compatibility) == (0, 1)


def test_nothing_new_is_as_the_old(stages, trial):
    one = certify.version(stages / "one")
    again = Version("again", copy.deepcopy(one.encoders), {name: f"{name}-again" for name in one.identities})
    found = compatibility.certify(again, one, trial)
    assert [mix.new for mix in found.mixes] == [[], ["camera"], ["microphone"], ["camera", "microphone"]]
    assert found.recall_old > 0.9  # of 0.05 by chance: there is something to lose
    for mix in found.mixes:
        assert mix.recall.value == mix.recall.low == mix.recall.high == 1
        assert mix.false_alarms.value == mix.false_alarms.low == mix.false_alarms.high == 1
        assert mix.flips.value == mix.agreement.value == mix.area_lost.value == 0
        assert mix.area.low <= mix.area.value <= mix.area.high
    assert found.certified == [mix.encoders for mix in found.mixes]
    assert found.mixes[1].encoders == {"camera": "camera-again", "microphone": one.identities["microphone"]}


def test_a_protected_stage_is_certified_and_one_that_forgets_is_not(stages, trial):
    one, two, free = (certify.version(stages / name) for name in ("one", "two", "free"))
    assert len(compatibility.certify(two, one, trial).certified) == 4
    found = compatibility.certify(free, one, trial)
    assert found.mixes[0].encoders in found.certified
    failed = [gate.name for gate in found.gates if not gate.passed]
    assert "compatibility, camera new: recall, at best" in failed
    assert "compatibility, microphone new: recall, at best" in failed
    assert all(mix.encoders not in found.certified for mix in found.mixes[1:3])


def test_an_encoder_that_sees_otherwise_flips_what_was_right(stages, trial):
    """Features of a new trunk against a normal that the old one learned: alarms without a fault."""
    one = certify.version(stages / "one")
    other = copy.deepcopy(one.encoders)
    other["camera"].trunk = torch.nn.Sequential(other["camera"].trunk, Rolled())
    found = compatibility.certify(Version("other", other, {"camera": "c", "microphone": "m"}), one, trial)
    camera = found.mixes[1]
    assert camera.new == ["camera"]
    assert camera.flips.value > 0.1
    assert camera.false_alarms.value > 5
    assert camera.area_lost.value > 0.01  # what learning normal running anew would mend


class Rolled(torch.nn.Module):
    def forward(self, x):
        return torch.roll(x, 3, dims=1)


def test_a_modality_that_only_the_new_stage_knows_is_in_every_mix(stages, trial):
    one = certify.version(stages / "one")
    alone = copy.deepcopy(one.encoders)
    del alone["microphone"]
    found = compatibility.certify(one, Version("alone", alone, {"camera": "old"}), trial)
    assert [mix.encoders["microphone"] for mix in found.mixes] == [one.identities["microphone"]] * 2
    assert [mix.new for mix in found.mixes] == [[], ["camera"]]
    with pytest.raises(ValueError, match="share no modality"):
        compatibility.certify(one, Version("none", type(alone)({}), {}), trial)


def test_moments_of_the_bank_share_no_sample_with_those_judged():
    dataset = scene(1, 200)
    overlapping = replace(dataset, start_ns=np.arange(200, dtype=np.int64) * NS // 2, hop_ns=NS // 2)
    bank, normal = compatibility.in_turn(overlapping)
    apart = np.abs(bank.start_ns[:, None] - normal.start_ns[None])
    assert apart.min() >= NS
    assert len(bank) > 50
    assert len(normal) > 100


def test_every_made_defect_is_in_one_sensor():
    dataset = scene(1, 20)
    changed = compatibility.with_defects(dataset)
    moved = {name: (view.inputs != dataset.views[name].inputs).any(axis=1) for name, view in changed.views.items()}
    np.testing.assert_array_equal(moved["cam0"], ~moved["mic0"])


def test_certificates_are_kept_one_for_each_old_version(stages, trial, tmp_path):
    one, two = (certify.version(stages / name) for name in ("one", "two"))
    found = compatibility.certify(two, one, trial)
    compatibility.keep(tmp_path, found)
    compatibility.keep(tmp_path, found)
    compatibility.keep(tmp_path, msgspec.structs.replace(found, against="stage-0"))
    assert [each.against for each in compatibility.kept(tmp_path, two.name)] == [one.name, "stage-0"]
    assert compatibility.kept(tmp_path, two.name)[0] == found
    with pytest.raises(ConfigError, match=f"certifies {two.name}, not stage-9"):
        compatibility.kept(tmp_path, "stage-9")
    (tmp_path / compatibility.FILE).write_text("[{}]")
    with pytest.raises(ConfigError, match="cannot be read"):
        compatibility.kept(tmp_path, two.name)


def test_the_command_certifies_and_exports_carry_the_mixes(stages):
    words = ["certify", str(stages / "two"), "--against", str(stages / "one"), "--json"]
    done = CliRunner().invoke(app, [*words, "--recording", str(stages / "unseen.safetensors")])
    assert done.exit_code == 0, done.output
    one, two = certify.version(stages / "one"), certify.version(stages / "two")
    told = msgspec.json.decode(done.stdout)[f"beside {one.name}"]
    assert len(told["mixes"]) == 4
    known = waivers.certificate(stages / "two", checkpoint.load_stage(stages / "two"))
    assert known.mixes[0] == two.identities
    assert {"camera": two.identities["camera"], "microphone": one.identities["microphone"]} in known.mixes
    assert any(gate.name == "compatibility, camera new: recall, at best" for gate in known.gates)
    human = CliRunner().invoke(app, [*words[:-1], "--recording", str(stages / "unseen.safetensors")])
    assert "new camera + microphone  recall 1.0" in human.stdout or "recall 0.99" in human.stdout


def test_of_its_own_recording_only_what_it_held_out_is_judged(stages):
    held, told = certify.trial(stages / "two", RecordingPart(str(stages / "second.safetensors")), None)
    assert len(held.normal) == COUNT // 5
    assert held.bank.start_ns.max() < held.normal.start_ns.min()
    assert "learned from it" in told[0]
    write(stages / "short.safetensors", scene(3, 60))
    with pytest.raises(RecordingError, match="at least 40 are needed"):
        certify.trial(stages / "two", RecordingPart(str(stages / "short.safetensors")), None)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--against", "one"], "--against and --recording go together"),
        (["--against", "two", "--recording", "unseen.safetensors"], "is stage-2-"),
        (["--against", "nowhere", "--recording", "unseen.safetensors"], "is no finished stage"),
    ],
)
def test_what_cannot_be_certified_is_refused(stages, words, told):
    given = [word if word.startswith("--") else str(stages / word) for word in words]
    done = CliRunner().invoke(app, ["certify", str(stages / "two"), *given])
    assert told in str(done.exception)


def test_another_space_is_refused_by_name(stages):
    run_stage(plan(out="elsewhere", seed=2), stages, SimulatedClock())
    with pytest.raises(ConfigError, match="their embeddings cannot be compared"):
        certify.field(stages / "two", [stages / "elsewhere"])


def test_devices_mix_only_what_was_measured_together():
    camera, microphone = tiny_encoder.card("camera", 2), tiny_encoder.card("microphone", 1)
    other = msgspec.structs.replace(microphone, encoder="b")
    assert certified({"camera": camera, "microphone": microphone})
    assert certified({"microphone": other})
    assert not certified({"camera": camera, "microphone": other})
    with pytest.raises(ReleaseError, match="was not certified together with microphone-1 of stage-1") as refused:
        tiny_encoder.release.accept(camera, {"microphone": other, "camera": tiny_encoder.card("camera", 1)})
    assert refused.value.check == "compatibility"


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "targets.pem"
    path.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


@pytest.fixture
def failed(stages, tmp_path):
    """A stage with one failed gate."""
    folder = tmp_path / "stage"
    folder.mkdir()
    for path in (stages / "one").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    stage = checkpoint.load_stage(folder)
    spoilt = msgspec.structs.replace(stage.certificate, gates=[Gate("spread camera", 0.99, 0.98, True)])
    (folder / checkpoint.STAGE).write_bytes(msgspec.json.encode(msgspec.structs.replace(stage, certificate=spoilt)))
    return folder


def test_nothing_leaves_while_a_gate_has_failed_unless_somebody_answers_for_it(failed, key):
    stage = checkpoint.load_stage(failed)
    with pytest.raises(GateError, match=r"`spread camera` is 0.99, must be at most 0.98.*export waive"):
        waivers.certificate(failed, stage)
    signed = waivers.waive(failed, "spread camera", "a still life", "K. Sato", key, SimulatedClock(7))
    told = waivers.certificate(failed, stage)
    assert told.waivers == [signed]
    assert told.refused is None
    assert (signed.reason, signed.by, signed.at_ns) == ("a still life", "K. Sato", 7)
    tiny_encoder.release.accept(msgspec.structs.replace(tiny_encoder.card(), certificate=told), {})


@pytest.mark.parametrize("change", [{"reason": "all is well"}, {"value": 0.5}, {"stage": "stage-1-00000000"}])
def test_a_waiver_that_was_changed_does_not_hold(failed, key, change):
    signed = waivers.waive(failed, "spread camera", "a still life", "K. Sato", key, SimulatedClock())
    assert holds(signed)
    altered = msgspec.structs.replace(signed, **change)
    assert not holds(altered)
    (failed / waivers.FILE).write_bytes(msgspec.json.encode([altered]))
    with pytest.raises(GateError, match="of another stage, or was changed"):
        waivers.certificate(failed, checkpoint.load_stage(failed))


def test_a_waiver_is_for_one_gate_at_its_number(failed, key):
    signed = waivers.waive(failed, "spread camera", "a still life", "K. Sato", key, SimulatedClock())
    stage = checkpoint.load_stage(failed)
    worse = msgspec.structs.replace(
        stage.certificate, gates=[Gate("spread camera", 0.995, 0.98, True)], waivers=[signed]
    )
    assert worse.refused.value == 0.995
    with pytest.raises(ConfigError, match="`spread lens` is no gate of"):
        waivers.waive(failed, "spread lens", "why", "who", key, SimulatedClock())
    with pytest.raises(ConfigError, match="without a reason"):
        waivers.waive(failed, "spread camera", " ", "who", key, SimulatedClock())
    with pytest.raises(ConfigError, match="no private key"):
        waivers.waive(failed, "spread camera", "why", "who", failed / "stage.json", SimulatedClock())


def test_a_stage_trained_backward_finds_what_the_old_one_left(stages, trial):
    """Unprotected, the same stage with and without the term: with it, old answers are still found."""
    other = {"parent": "one", "recordings": [RecordingPart("other.safetensors")]}
    free = ProtectionSettings(rule="none", drift_budget=1e9)
    term = BackwardSettings(weight=2.0)
    run_stage(plan(out="back", protection=free, learning_rate=0.02, backward=term, **other), stages, SimulatedClock())
    one, back, plain = (certify.version(stages / name) for name in ("one", "back", "free"))
    like = compatibility.in_turn(turned(scene(11, 600)))
    new = Trial(*like, turned(scene(12, 100, fault=6.0)))

    def recall(version: Version) -> float:
        mixes = compatibility.certify(version, one, new).mixes
        return (mixes[1].recall.value + mixes[2].recall.value) / 2

    assert recall(back) > 1.2 * recall(plain)
    log = (stages / "back" / checkpoint.LOG).read_text()
    assert "backward:cam0>mic0=" in log
    assert "backward:mic0>mic0=" in log


def test_backward_goes_with_steps():
    with pytest.raises(ValueError, match="no loss teaches them"):
        msgspec.convert(
            {"out": "x", "recordings": [{"path": "y"}], "heads": {"fit": "moments"}, "backward": {"weight": 1.0}}, Plan
        )
