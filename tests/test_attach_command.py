"""`lineside train attach` on a line of three sensors: what it writes, keeps, goes on from, and refuses."""

import hashlib
import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from edge.encoder import Encoder as DeviceEncoder
from export.bundle import build
from lineside import config, release
from lineside.errors import ConfigError, GateError, RecordingError
from lineside.release import Gate
from tests import attach_scene
from trainer import attached, checkpoint
from trainer.__main__ import app
from trainer.align import Matched, align, upper_bound
from trainer.attach import Print, base_retrieval, must_pass, run_attach
from trainer.attach_plan import AttachPlan, ProjectorSettings
from trainer.attached import Attached
from trainer.evaluate import embed
from trainer.feature_files import read as read_features
from trainer.matching import asked
from trainer.plan import RecordingPart
from trainer.quadruples import Memories
from trainer.spaces import pools, spaces

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    torch.set_num_threads(1)
    return attach_scene.two_spaces(tmp_path_factory.mktemp("line"))


@pytest.fixture
def folder(line, tmp_path):
    """A copy of the line that a test may change."""
    return Path(shutil.copytree(line, tmp_path / "line"))


@pytest.fixture(scope="module")
def done(line):
    """An attachment with all numbers, and the hashes of the base's files before it."""
    before = hashes(line / "base")
    paired = [RecordingPart("paired.safetensors")]
    return run_attach(attach_scene.plan(out="whole.safetensors", paired=paired), line), before


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def loaded(folder, name):
    stage = checkpoint.load_stage(folder / name)
    return stage, checkpoint.load_tensors(folder / name, stage)


def changed(folder, **changes):
    return run_attach(attach_scene.plan(**changes), folder)


# What it does


def test_the_base_is_untouched_to_the_bit(line, done):
    about, before = done
    assert hashes(line / "base") == before
    gates = {gate.name: gate.value for gate in about.gates}
    assert gates["base changed"] == 0
    assert gates["base retrieval delta"] == 0
    assert about.base_print == attached.hash_of(loaded(line, "base")[1].encoders.state_dict())


def test_a_base_that_did_change_fails_its_gates(line):
    plan = attach_scene.plan()
    known = spaces(plan, line)
    memories = pools(plan, known, line).embedded(known)
    before = Print.take(line / "base", known.base, memories)
    assert base_retrieval(known.base)
    with torch.no_grad():
        known.base.tensors.encoders["camera"].head.weight[0] += 1.0
    after = Print.take(line / "base", known.base, pools(plan, known, line).embedded(known))
    assert [gate.passed for gate in before.differs(after)] == [False, False]
    assert before.differs(after)[0].value == 2  # parameters and embeddings, not files


def test_without_a_pair_newcomer_and_partner_find_each_other(done):
    about, _ = done
    zero, bound, other = (about.measured.rows[name]["recall_few"] for name in ("zero-pair", "upper bound", "c-mcr"))
    assert zero.low > 5 * zero.chance
    assert zero.chance == pytest.approx(0.05)
    assert bound.low > zero.chance
    assert other.low > zero.chance
    assert about.measured.of_bound["recall_few"].value > 0.7
    assert about.measured.bound.startswith(("projector", "linear"))
    assert about.measured.windows == 160
    assert about.passed


def test_the_numbers_are_those_of_the_head_that_was_written(line, done):
    about, _ = done
    leaf, base = loaded(line, "leaf"), loaded(line, "base")
    head = Attached.load(line / "whole.safetensors", leaf[0], base[0])
    held = read_features(line / "held.safetensors").sensors
    m = embed(leaf[1].encoders["microphone"], held["mic0"].features)
    c = embed(base[1].encoders["camera"], held["cam0"].features)
    assert head.embed(m).shape == (160, 16)
    np.testing.assert_allclose(np.linalg.norm(head.embed(m), axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(head.embed(m)[:3], head.embed(m[:3]), atol=1e-6)
    assert head.partner(c) is c
    found = asked(head.embed(m), c, np.arange(160)).scores
    for name, row in about.measured.rows["zero-pair"].items():
        assert found[name].mean() == pytest.approx(row.value, abs=0.01), name
    encoder = head.encoder(leaf[1].encoders["microphone"])
    np.testing.assert_allclose(embed(encoder, held["mic0"].features), head.embed(m), atol=1e-5)
    assert encoder.head.dim == 16


def test_the_file_says_what_it_was_made_of(line, done):
    about, _ = done
    plan = attach_scene.plan(out="whole.safetensors", paired=[RecordingPart("paired.safetensors")])
    leaf, base = loaded(line, "leaf")[0], loaded(line, "base")[0]
    assert (about.newcomer, about.overlap, about.partner, about.method) == ("microphone", "series", "camera", "ex-mcr")
    assert (about.leaf_sha256, about.base_sha256) == tuple(each.files[checkpoint.WEIGHTS] for each in (leaf, base))
    assert (about.dims, about.seed, about.plan_sha256, about.space) == ((12, 48, 16), 1, plan.sha256, base.space)
    assert {look.name for look in about.retrieval} == {
        "m to o", "m to o to c", "o to m", "o to c", "c to o", "c to o to m",
    }  # fmt: skip
    assert attached.read_about(line / "whole.safetensors") == about
    assert [path.name for path in line.iterdir() if path.name.startswith(".")] == []  # nothing half-trained stays


def test_the_same_seed_gives_the_same_file_and_another_another(folder):
    plans = {name: attach_scene.plan(out=f"{name}.safetensors") for name in ("a", "b")}
    plans["c"] = attach_scene.plan(out="c.safetensors", seed=2)
    heads = {}
    for name, plan in plans.items():
        run_attach(plan, folder)
        heads[name] = load_file(folder / plan.out)
    assert all(torch.equal(heads["a"][key], heads["b"][key]) for key in heads["a"])
    assert not all(torch.equal(heads["a"][key], heads["c"][key]) for key in heads["a"])


def test_what_is_killed_goes_on_to_the_same_head(folder):
    whole = changed(folder)
    wanted = (folder / "microphone.safetensors").read_bytes()
    (folder / "microphone.safetensors").unlink()

    def killed(what, done, total=0):
        if what == "steps of ex-mcr" and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_attach(attach_scene.plan(), folder, killed)
    assert (folder / ".microphone.safetensors.half").is_dir()
    steps = []
    again = run_attach(attach_scene.plan(), folder, lambda what, done, total=0: steps.append((what, done)))
    assert next(done for what, done in steps if what == "steps of ex-mcr") > 30  # it did not begin anew
    assert again == whole
    assert (folder / "microphone.safetensors").read_bytes() == wanted
    assert not (folder / ".microphone.safetensors.half").exists()


def test_a_finished_head_is_given_back_and_deleting_it_detaches(folder):
    first = changed(folder)
    stamp = (folder / "microphone.safetensors").stat().st_mtime_ns
    assert changed(folder) == first
    assert (folder / "microphone.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match="holds a head of another plan"):
        changed(folder, tau2=0.1)
    before = {path.name for path in folder.iterdir()}
    (folder / "microphone.safetensors").unlink()
    assert before - {path.name for path in folder.iterdir()} == {"microphone.safetensors"}
    assert changed(folder, tau2=0.1).passed


def test_c_mcr_brings_its_own_head_for_the_base_and_no_encoder_of_the_base_s_space(folder):
    about = changed(folder, method="c-mcr")
    leaf, base = loaded(folder, "leaf"), loaded(folder, "base")
    head = Attached.load(folder / "microphone.safetensors", leaf[0], base[0])
    z = np.eye(16, dtype=np.float32)
    assert not np.allclose(head.partner(z), z)
    assert set(about.measured.rows) == {"zero-pair"}
    assert about.measured.gap_after == -1
    with pytest.raises(ConfigError, match="projects the base as well"):
        head.encoder(leaf[1].encoders["microphone"])


def test_layer_norm_is_a_declared_deviation_for_small_pools(folder):
    attach_scene.features(folder / "few.safetensors", 9, ("mic0",), count=20)
    few = [RecordingPart("few.safetensors")]
    with pytest.raises(ConfigError, match="newcomers: 20 rows, and a projector with batch norm needs 32"):
        changed(folder, newcomers=few)
    about = changed(folder, newcomers=few, projector=ProjectorSettings(hidden=48, norm="layer"))
    assert about.norm == "layer"
    assert about.measured.rows["zero-pair"]["recall_few"].value > 0.1
    Attached.load(folder / "microphone.safetensors", *(loaded(folder, name)[0] for name in ("leaf", "base")))


def test_a_bound_is_chosen_on_pairs_that_it_did_not_learn():
    rng = torch.Generator().manual_seed(1)
    m = torch.nn.functional.normalize(torch.randn(200, 24, generator=rng))
    turned = m @ torch.linalg.qr(torch.randn(24, 24, generator=rng)).Q  # a linear map is the truth
    parts = [Matched(m[at], turned[at], np.arange(200)[at]) for at in (slice(0, 40), slice(40, 200))]
    plan = attach_scene.plan(learning_rate=1e-2)
    assert upper_bound(plan, *parts, steps=80).name == "linear, 80 steps"
    with pytest.raises(ConfigError, match="paired: gives 1 pairs to choose by"):
        upper_bound(plan, parts[0], parts[1][np.arange(1)], steps=8)


# The command


def written(folder, plan):
    text = attach_scene.ATTACH if plan is None else plan
    (folder / "attach.toml").write_text(text)
    return str(folder / "attach.toml")


def test_the_command_prints_one_line_and_the_attached_sensor_is_evaluated_beside_the_base(folder):
    ran = CliRunner().invoke(app, ["attach", written(folder, None), "--json"])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    assert told["newcomer"] == "microphone"
    assert [gate["passed"] for gate in told["gates"]] == [True, True, True]
    scores = {(row["way"], row["score"]): row["value"] for row in told["found"]}
    assert set(way for way, _ in scores) == {"zero-pair", "c-mcr"}
    both = ["--head", str(folder / "microphone.safetensors"), "--leaf", str(folder / "leaf")]
    asked_for = ["evaluate", str(folder / "base"), "--recording", str(folder / "held.safetensors"), "--json"]
    ran = CliRunner().invoke(app, [*asked_for, *both])
    assert ran.exit_code == 0, ran.output
    rows = {(row["asked"], row["answered"]): row["recall_1_few"] for row in json.loads(ran.stdout)["retrieval"]}
    mean = (rows["mic0", "cam0"] + rows["cam0", "mic0"]) / 2
    assert mean == pytest.approx(scores["zero-pair", "recall_few"], abs=0.01)
    alone = json.loads(CliRunner().invoke(app, asked_for).stdout)["retrieval"]
    assert [
        row for row in json.loads(ran.stdout)["retrieval"] if "mic0" not in (row["asked"], row["answered"])
    ] == alone
    halved = CliRunner().invoke(app, [*asked_for, *both[:2]])
    assert "give the head's file and the stage" in str(halved.exception)


def test_a_head_that_is_no_better_than_chance_is_written_as_failed(folder, tmp_path):
    about = changed(folder)
    failed = msgspec.structs.replace(about, gates=[Gate("zero-pair recall among few, low", 0.04, 0.05, False)])
    with pytest.raises(GateError, match=r"zero-pair recall among few, low` is 0.04, must be at least 0.05"):
        must_pass(failed, tmp_path)


def test_noise_for_the_newcomer_fails_the_gate_with_exit_6(folder):
    rng = np.random.default_rng(0)
    held = read_features(folder / "held.safetensors")
    held.sensors["mic0"].features[:] = rng.normal(size=(160, attach_scene.WIDTH))
    attach_scene.feature_files.write(folder / "held.safetensors", held)
    ran = CliRunner().invoke(app, ["attach", written(folder, None)])
    assert isinstance(ran.exception, GateError)
    assert ran.exception.exit_code == 6
    assert not attached.read_about(folder / "microphone.safetensors").passed


# Bad input


REFUSED = {
    "no stage": ({"leaf": "nowhere"}, ConfigError, "is no finished stage"),
    "no such newcomer": ({"newcomer": "thermal"}, ConfigError, "the leaf .* knows microphone, series, not thermal"),
    "known already": ({"newcomer": "series"}, ConfigError, "knows series already"),
    "no such overlap": ({"overlap": "camera"}, ConfigError, "camera is not one that could be it; choose of: series"),
    "no such partner": ({"partner": "thermal"}, ConfigError, "partner: thermal is not one"),
    "nothing of the newcomer": (
        {"newcomers": [RecordingPart("base.safetensors")]}, RecordingError, "nothing to learn from",
    ),
    "no pair in the hold-out": (
        {"hold_out": [RecordingPart("base.safetensors")]}, ConfigError, "has no moment with both microphone and camera",
    ),
    "flat": ({"tau1": 100.0}, GateError, "retrieval m to o: has collapsed: weights are flat"),
    "one-hot": ({"tau1": 1e-6}, GateError, "has collapsed: weights are one-hot"),
    "small batch": ({"batch": 16}, ConfigError, "batch: 16 rows, and a projector with batch norm needs 32"),
    "diverged": ({"learning_rate": 1e30}, GateError, "the loss is no number"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_attached_is_refused_with_the_mend_and_leaves_no_file(line, name):
    changes, kind, told = REFUSED[name]
    with pytest.raises(kind, match=told) as refused:
        run_attach(attach_scene.plan(out="refused.safetensors", **changes), line)
    assert refused.value.mend
    assert not (line / "refused.safetensors").exists()
    shutil.rmtree(line / ".refused.safetensors.half", ignore_errors=True)


def test_two_spaces_without_a_common_modality_are_refused(folder):
    path = folder / "leaf" / "stage.json"
    told = json.loads(path.read_text())
    for table in ("prepare", "prepare_sha256", "widths"):
        told[table]["thermal"] = told[table].pop("series")
    weights = load_file(folder / "leaf" / "weights.safetensors")
    save_file(
        {name.replace("series", "thermal"): x for name, x in weights.items()}, folder / "leaf/weights.safetensors"
    )
    seen = load_file(folder / "leaf" / "statistics.safetensors")
    save_file(
        {name.replace("series", "thermal"): x for name, x in seen.items()}, folder / "leaf/statistics.safetensors"
    )
    for name in ("weights", "statistics"):
        data = (folder / "leaf" / f"{name}.safetensors").read_bytes()
        told["files"][f"{name}.safetensors"] = hashlib.sha256(data).hexdigest()
    path.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r"leaf \(microphone, thermal\) and base \(camera, series\) have no modality"):
        changed(folder)


def test_windows_that_are_cut_another_way_are_refused(folder):
    path = folder / "leaf" / "stage.json"
    told = json.loads(path.read_text())
    told["windows"]["hop_s"] = 0.5
    path.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r"its windows are not the base's: 1 s every 0.5 s and 1 s every 1 s"):
        changed(folder)


WRONG_PLANS = {
    'method = "imagebind"': "method: invalid enum value 'imagebind'",
    "tau1 = 0.0": "tau1 must be above 0",
    "lambda = -1.0": "lambda, noise and baseline_noise must be at least 0",
    "lamda = 0.1": "unknown key 'lamda'; did you mean 'lambda'",
    "epochs = 0": "epochs must be at least 1",
    "newcomers = []": "must each name at least one recording",
    'out = "head.onnx"': "out must end in .safetensors",
    '[projector]\nnorm = "group"': "projector.norm",
    "[retrieval]\nflat = 2.0": "must lie in 0..1",
}


@pytest.mark.parametrize("line_of", WRONG_PLANS)
def test_plans_are_checked_whole(line_of):
    head = attach_scene.ATTACH.partition("[projector]")[0]
    key = line_of.partition(" =")[0]
    text = "\n".join(row for row in head.splitlines() if row.partition(" =")[0] != key) + "\n" + line_of + "\n"
    with pytest.raises(ConfigError, match=WRONG_PLANS[line_of]):
        config.loads(text, AttachPlan, "attach.toml")


def rewritten(path, change):
    """A head's file with other tensors, whose hash is right."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
    tensors = change(load_file(path))
    about["tensors"] = attached.hash_of(tensors)
    save_file(tensors, path, {"about": json.dumps(about)})


DAMAGED = {
    "a weight is missing": (lambda t: {k: x for k, x in t.items() if k != "newcomer.2.bias"}, "newcomer.2.bias"),
    "a weight too many": (lambda t: {**t, "newcomer.9.bias": torch.zeros(3)}, "newcomer.9.bias"),
    "another name": (lambda t: {k.replace("newcomer", "leaf"): x for k, x in t.items()}, "leaf.0.bias"),
    "another width": (lambda t: {**t, "newcomer.4.weight": torch.zeros(8, 48)}, "newcomer.4.weight"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_key_that_does_not_fit_is_never_silently_the_identity(line, done, tmp_path, name):
    change, told = DAMAGED[name]
    path = tmp_path / "head.safetensors"
    shutil.copy(line / "whole.safetensors", path)
    rewritten(path, change)
    with pytest.raises(ConfigError, match=f"its tensors do not fit its method: .*{told}"):
        Attached.load(path, loaded(line, "leaf")[0], loaded(line, "base")[0])


def test_a_head_serves_the_two_stages_that_it_was_trained_for_alone(line, done):
    leaf, base = loaded(line, "leaf")[0], loaded(line, "base")[0]
    path = line / "whole.safetensors"
    with pytest.raises(ConfigError, match=r"was trained for a leaf of hash .*, this one is"):
        Attached.load(path, base, leaf)
    other = msgspec.structs.replace(base, files={**base.files, checkpoint.WEIGHTS: "0" * 64})
    with pytest.raises(
        ConfigError, match=r"was trained for a base of hash .*, this one is 000000000000; give the base"
    ):
        Attached.load(path, leaf, other)
    wider = msgspec.structs.replace(leaf, plan=msgspec.structs.replace(leaf.plan, dim=99))
    with pytest.raises(ConfigError, match=r"is for a leaf of 12 dimensions, .* has 99"):
        Attached.load(path, wider, base)


def test_a_damaged_file_is_refused(line, done, tmp_path):
    path = tmp_path / "head.safetensors"
    data = bytearray((line / "whole.safetensors").read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    stages = loaded(line, "leaf")[0], loaded(line, "base")[0]
    with pytest.raises(ConfigError, match="its weights are not those that were written"):
        Attached.load(path, *stages)
    path.write_bytes(bytes(data[:100]))
    with pytest.raises(ConfigError, match="is damaged or no safetensors file"):
        Attached.load(path, *stages)
    with pytest.raises(ConfigError, match="is no head of an attached sensor"):
        Attached.load(line / "held.safetensors", *stages)
    with pytest.raises(ConfigError, match="cannot be read"):
        Attached.load(tmp_path / "none.safetensors", *stages)


def test_dims_of_leaf_and_base_may_differ_and_pools_of_one_space_may_not():
    z = [torch.nn.functional.normalize(torch.randn(40, dim)) for dim in (6, 6, 10, 10)]
    model, _ = align(attach_scene.plan(epochs=1, tau1=0.2), Memories(*z))
    assert model.newcomer(z[0]).shape == (40, 10)
    with pytest.raises(ConfigError, match="leaf space"):
        Memories(z[0], z[2], z[2], z[3])


# To a device


def test_the_attached_sensor_leaves_for_a_device_in_the_base_s_space(tmp_path):
    for name, seed, sensors in (("base", 1, ("cam0", "pump0")), ("leaf", 2, ("mic0", "pump0"))):
        attach_scene.record(tmp_path / f"{name}.mcap", 60, seed, sensors)
        attach_scene.stage(tmp_path, name, f"{name}.mcap", epochs=8, more=attach_scene.SMALL + attach_scene.OPEN)
    text = attach_scene.ATTACH.replace('safetensors" }', 'mcap" }').replace('hold_out = [{ path = "held.mcap" }]', "")
    run_attach(config.loads(text + attach_scene.UNJUDGED, AttachPlan), tmp_path)
    head = tmp_path / "microphone.safetensors"
    (built,) = build(tmp_path / "leaf", tmp_path / "out", 3, ("fp32",), head=head)
    leaf, base = loaded(tmp_path, "leaf"), loaded(tmp_path, "base")
    device = DeviceEncoder.load(Path(built.file))
    assert (device.card.space, device.card.modality, device.card.dim) == (base[0].space, "microphone", 16)
    release.accept(device.card, {})
    assert release.self_test(device.card, device.embed) <= device.card.tolerance
    windows = leaf[1].calibration["microphone"].numpy()
    want = Attached.load(head, leaf[0], base[0]).embed(embed(leaf[1].encoders["microphone"], windows))
    np.testing.assert_allclose(device.embed(windows), want, atol=1e-4)
    told = [gate.name for gate in device.card.certificate.gates]
    assert told[-3:] == ["base changed", "base retrieval delta", "parity fp32"]
    beside = checkpoint.identities(base[0], base[1].encoders)
    assert device.card.certificate.mixes == [{**beside, "microphone": device.card.encoder}]
    with pytest.raises(ConfigError, match="the head attaches microphone alone"):
        build(tmp_path / "leaf", tmp_path / "out", 3, ("fp32",), ("series",), head=head)
