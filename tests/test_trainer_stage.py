"""A first stage, a second one that forgets nothing, resuming to the same bits, and stages that must not leave."""

import csv
import json
import subprocess
import sys

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lineside.clock import SystemClock
from lineside.errors import ConfigError, GateError
from lineside.release import Gate
from tests import pitch_scene
from trainer import checkpoint, gates
from trainer.data import read
from trainer.evaluate import embed, measure, spread
from trainer.plan import DefectSettings, GateSettings, RecordingPart
from trainer.stage import drifts, run_stage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    pitch_scene.train_two(folder)
    return folder


def run(plan, folder, **more):
    return run_stage(plan, folder, SystemClock(), **more)


def command(*words, cwd):
    done = subprocess.run(
        [sys.executable, "-m", "trainer", *words], cwd=cwd, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_picture_and_sound_find_each_other_on_held_out_moments(folder):
    stage = checkpoint.load_stage(folder / "one")
    assert stage.passed
    assert stage.stage == 1
    assert len(stage.metrics.retrieval) == 2
    for found in stage.metrics.retrieval:
        assert found.recall_1_few > 4 * found.chance_few
    assert all(value < 0.9 for value in stage.metrics.spread.values())
    assert stage.space == f"s-{stage.files['weights.safetensors'][:12]}"


def test_the_second_stage_moves_only_heads_and_keeps_old_embeddings(folder):
    one, two = (checkpoint.load_stage(folder / name) for name in ("one", "two"))
    old, new = (load_file(folder / name / "weights.safetensors") for name in ("one", "two"))
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved == {"camera.head.weight", "microphone.head.weight"}
    assert two.passed
    assert two.space == one.space
    assert two.parent == one.name
    assert all(0 < value <= 0.05 for value in two.certificate.embedding_drift.values())
    assert list(two.certificate.similarity_drift) == ["camera+microphone"]
    assert {gate.name.split()[0] for gate in two.certificate.gates} == {"embedding", "retention", "retrieval", "spread"}
    assert all(0 < share < 1 for share in two.capacity.values())


def test_the_certified_drift_is_what_old_windows_really_suffer(folder):
    """On the very windows that stage one learned from, before normalisation, float32."""
    one, two = (checkpoint.load_stage(folder / name) for name in ("one", "two"))
    before, after = (checkpoint.load_tensors(folder / s, k).encoders for s, k in (("one", one), ("two", two)))
    data = read([RecordingPart(path="one.mcap")], folder, one.windows, one.prepare)
    learn, _ = data.split(one.plan.held_out)
    for modality in one.prepare:
        x = torch.from_numpy(embed(before[modality], data.of_modality(modality, learn), with_head=False))
        with torch.no_grad():
            was, now = before[modality].head(x).double(), after[modality].head(x).double()
        real = float((now - was).norm() / was.norm())
        assert two.certificate.embedding_drift[modality] == pytest.approx(real, rel=1e-3)


def test_a_drift_above_the_budget_fails_its_gate_and_the_stage(folder):
    """Heads pushed past the budget behind the trainer's back: the gates see it, and nothing may follow or leave."""
    stage = checkpoint.load_stage(folder / "two")
    tensors = checkpoint.load_tensors(folder / "two", stage)
    with torch.no_grad():
        tensors.encoders["camera"].head.weight.mul_(1.2)
    embeddings, _ = drifts(tensors)
    assert embeddings["camera"] > 0.15
    judged = gates.judge(
        gates.Evidence(
            stage.plan, tensors.encoders, tensors.changes, embeddings, tensors.bank, [("cam0", "mic0")], stage.metrics
        )
    )
    proof = msgspec.structs.replace(stage.certificate, gates=judged)
    with pytest.raises(GateError, match=r"gate `embedding drift camera` is 0\.\d+, must be at most 0\.05"):
        checkpoint.must_pass(msgspec.structs.replace(stage, certificate=proof), folder / "two")


def test_heads_that_scramble_old_moments_fail_retention(folder):
    stage = checkpoint.load_stage(folder / "two")
    tensors = checkpoint.load_tensors(folder / "two", stage)
    old = {name: bank for name, bank in tensors.bank.items() if name.startswith("1/")}
    evidence = gates.Evidence(stage.plan, tensors.encoders, tensors.changes, {}, old, [], stage.metrics)
    assert all(gate.passed for gate in gates.retention(evidence))
    with torch.no_grad():
        tensors.encoders["camera"].head.weight.copy_(tensors.encoders["camera"].head.weight.flip(0))
    (gate,) = gates.retention(evidence)
    assert gate.name == "retention stage 1 cam0 + mic0"
    assert not gate.passed


@pytest.mark.parametrize("parent", ["", "one"])
def test_a_stage_stopped_anywhere_goes_on_to_the_same_bits(folder, parent):
    changes = {"parent": parent, "epochs": 3, "batch": 16}
    whole, parts = (pitch_scene.plan(f"{name}{parent}", "two.mcap", **changes) for name in ("whole", "parts"))
    parts = msgspec.structs.replace(parts, out=f"parts{parent}")
    run(whole, folder)
    assert run(parts, folder, max_steps=4) is None  # in the middle of an epoch
    assert run(parts, folder, max_steps=9) is None
    assert not (folder / parts.out / "stage.json").exists()
    stage = run(parts, folder)
    assert stage.counters.steps > 9
    for file in ("weights", "statistics", "bank"):
        a, b = (load_file(folder / plan.out / f"{file}.safetensors") for plan in (whole, parts))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    logs = [list(csv.DictReader((folder / plan.out / "log.csv").open())) for plan in (whole, parts)]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
    assert not (folder / parts.out / "resume.safetensors").exists()


def test_a_half_trained_stage_is_not_continued_under_another_plan(folder):
    plan = pitch_scene.plan("half", "two.mcap")
    run(plan, folder, max_steps=2)
    with pytest.raises(ConfigError, match="of another plan, parent or recording"):
        run(msgspec.structs.replace(plan, seed=2), folder)


def test_a_finished_stage_is_given_back_and_never_overwritten(folder):
    weights = folder / "one" / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    assert run(pitch_scene.plan("one", "one.mcap"), folder).name == checkpoint.load_stage(folder / "one").name
    assert weights.stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="finished stage of another plan"):
        run(pitch_scene.plan("one", "one.mcap", seed=9), folder)


def test_a_stage_whose_gate_failed_is_saved_as_failed(folder):
    plan = pitch_scene.plan("strict", "two.mcap", epochs=1, gates=GateSettings(retrieval_times_chance=0.0, spread=-1.0))
    stage = run(plan, folder)
    assert not stage.passed
    assert not checkpoint.load_stage(folder / "strict").passed
    with pytest.raises(GateError, match="gate `spread "):
        run(pitch_scene.plan("after", "two.mcap", parent="strict"), folder)


def test_a_window_pair_that_has_no_number_fails_its_gate():
    assert not Gate("retrieval", float("nan"), 0.1, False).passed


def test_changed_weights_are_refused_before_they_are_parsed(folder, tmp_path):
    stage = checkpoint.load_stage(folder / "one")
    for file in (folder / "one").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "weights.safetensors").write_bytes(b"\x80\x04nothing to parse")
    with pytest.raises(ConfigError, match="hash differs"):
        checkpoint.load_tensors(tmp_path, stage)


def test_a_new_modality_joins_and_the_old_one_it_meets_is_protected(folder):
    """Stage one knows only the microphone; the camera comes in stage two and is learned whole."""
    path = folder / "one.mcap"
    data = read([RecordingPart(path=str(path))], folder, only={"microphone"})
    assert list(data.views) == ["mic0"]
    sound_only = folder / "sound.mcap"
    record_sound(path, sound_only)
    run(pitch_scene.plan("ear", "sound.mcap", epochs=3), folder)
    both = run(pitch_scene.plan("ear-and-eye", "two.mcap", parent="ear", epochs=4), folder)
    assert sorted(both.prepare) == ["camera", "microphone"]
    assert list(both.certificate.embedding_drift) == ["microphone"]
    assert both.certificate.embedding_drift["microphone"] < 0.05
    old, new = (load_file(folder / name / "weights.safetensors") for name in ("ear", "ear-and-eye"))
    kept = [name for name in old if ".trunk." in name]
    assert all(torch.equal(old[name], new[name]) for name in kept)


def record_sound(source, path):
    from lineside.recording import About, Recorder, Recording

    with Recorder(path, About(sensors={"mic0": "microphone"})) as recorder:
        for samples in Recording(source).samples():
            if samples.sensor == "mic0":
                recorder.write(samples)


def test_learning_without_defects_is_a_switch_of_the_plan(folder):
    plan = pitch_scene.plan("plain", "two.mcap", epochs=1, defects=DefectSettings(own=0, together=0))
    run(plan, folder)
    terms = [row["terms"] for row in csv.DictReader((folder / "plain" / "log.csv").open())]
    assert all("cam0+mic0" in row and "defect" not in row for row in terms)


def test_defects_are_told_from_normal_windows_by_the_embedding(folder):
    """Distance to the nearest normal embedding ranks windows with a defect above normal ones."""
    from trainer.defects import defective

    stage = checkpoint.load_stage(folder / "one")
    encoders = checkpoint.load_tensors(folder / "one", stage).encoders
    data = read([RecordingPart(path="one.mcap")], folder, stage.windows, stage.prepare)
    learn, held = data.split(0.2)
    for modality in stage.prepare:
        normal = embed(encoders[modality], data.of_modality(modality, learn))
        windows = data.of_modality(modality, held)
        chance = [np.random.default_rng([99, k]) for k in range(len(windows))]
        broken = defective(modality, torch.from_numpy(windows), chance).numpy()
        far, near = (1 - (embed(encoders[modality], w) @ normal.T).max(axis=1) for w in (broken, windows))
        assert (far[:, None] > near[None]).mean() > 0.8, modality


def test_spread_of_equal_embeddings_is_one_and_fails():
    assert spread(np.ones((4, 8), np.float32) / np.sqrt(8).astype(np.float32)) == pytest.approx(1.0)


def test_commands_say_what_they_did(folder):
    code, out, _ = command("certify", "two", "--json", cwd=folder)
    stage = checkpoint.load_stage(folder / "two")
    told = json.loads(out)
    assert code == 0
    assert told["embedding_drift"] == pytest.approx(stage.certificate.embedding_drift)
    assert drifts(checkpoint.load_tensors(folder / "two", stage))[0] == pytest.approx(told["embedding_drift"])
    code, out, _ = command("evaluate", "two", "--recording", "two.mcap", "--json", cwd=folder)
    told = json.loads(out)
    assert code == 0
    assert {(row["asked"], row["answered"]) for row in told["retrieval"]} == {("cam0", "mic0"), ("mic0", "cam0")}
    data = read([RecordingPart(path="two.mcap")], folder, stage.windows, stage.prepare)
    measured = measure(checkpoint.load_tensors(folder / "two", stage).encoders, data, np.arange(len(data)))
    assert told["spread"] == pytest.approx(measured.spread)


def test_the_plan_is_refused_with_the_nearest_key(folder):
    (folder / "wrong.toml").write_text('out = "x"\nepoch = 3\n[[recordings]]\npath = "one.mcap"\n')
    code, _, told = command("stage", "wrong.toml", cwd=folder)
    assert code == 2
    assert told.strip() == "lineside: wrong.toml:2: unknown key 'epoch'; did you mean 'epochs'?"


def test_a_five_line_plan_trains_and_a_failed_gate_exits_6(folder):
    (folder / "short.toml").write_text(
        'out = "short"\nepochs = 1\ndim = 16\n[gates]\nspread = -1.0\n[[recordings]]\npath = "two.mcap"\nto_s = 20.0\n'
        + pitch_scene.SMALL
    )
    code, out, told = command("stage", "short.toml", "--json", cwd=folder)
    assert code == 6
    assert "gate `" in told
    assert json.loads(out)["passed"] is False
    assert not checkpoint.load_stage(folder / "short").passed
