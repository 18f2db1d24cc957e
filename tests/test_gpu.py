"""What a GPU must do as a CPU does; skipped with a reason where there is none."""

import msgspec
import pytest
import torch

from lineside.clock import SystemClock
from tests import pitch_scene
from trainer import checkpoint, loop
from trainer.bench import measure_encoders
from trainer.stage import run_stage

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def scene(tmp_path):
    pitch_scene.record(tmp_path / "one.mcap", 40, seed=1)
    return tmp_path


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stage_trains_on_the_gpu_and_its_heads_are_held_in_the_next(scene, precision):
    plan = msgspec.structs.replace(pitch_scene.plan("one", "one.mcap", epochs=2), precision=precision)
    one = run_stage(plan, scene, SystemClock())
    assert one is not None
    later = msgspec.structs.replace(plan, out="two", parent="one", seed=2)
    folder = scene / "one"
    if not one.passed:  # two epochs may not be enough for the gates, which are not what is tested here
        easy = [msgspec.structs.replace(gate, limit=gate.value) for gate in one.certificate.gates]
        proof = msgspec.structs.replace(one.certificate, gates=easy)
        stage = msgspec.structs.replace(one, certificate=proof)
        (folder / checkpoint.STAGE).write_bytes(msgspec.json.encode(stage))
    two = run_stage(later, scene, SystemClock())
    assert two is not None
    assert all(value <= 0.05 for value in two.certificate.embedding_drift.values())


def test_the_loop_takes_the_gpu_where_there_is_one():
    from trainer.processes import ALONE

    assert loop.device(ALONE).type == "cuda"


def test_the_bench_tells_speed_share_of_the_peak_and_memory():
    found = measure_encoders(SystemClock(), torch.device("cuda"), batch=16, rounds=2)
    assert found["samples_per_s"] > 0
    assert found["tflop_per_s"] > 0
    assert found["peak held"] > 0
    assert found["violation"] <= 1e-6
