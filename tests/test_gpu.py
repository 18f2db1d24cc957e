"""What a GPU must do as a CPU does; skipped with a reason where there is none."""

import os
import signal

import msgspec
import numpy as np
import pytest
import torch

from edge.encoder import Encoder
from edge.engine import MOST_WINDOWS
from edge.runtimes import CUDA, RUNTIMES, TENSORRT
from edge.workshop import Workshop
from lineside import features, release
from lineside.clock import SystemClock
from lineside.errors import ReleaseError
from tests import pitch_scene
from tests.line_broker import wait
from tests.line_device import DATA
from trainer import checkpoint, loop
from trainer.bench import measure_encoders
from trainer.stage import run_stage

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


PROVIDERS = {"tensorrt": "TensorRT ", "onnxruntime-tensorrt": TENSORRT, "onnxruntime-cuda": CUDA}


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


# ---- the device's runtimes, in the worker process that a GPU's encoder has

FILES = [DATA / "camera-1.onnx", DATA / "microphone-1.onnx"]
ON_GPU = [name for name, row in RUNTIMES.items() if row.gpu]


@pytest.mark.parametrize("name", ON_GPU)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_encoder_runs_on_the_gpu_and_nowhere_else(tmp_path, name, file):
    if reason := RUNTIMES[name].missing():
        pytest.skip(reason)
    shop = Workshop(name, tmp_path)
    encoder = shop.ready(file)
    assert encoder.provider.startswith(PROVIDERS[name])
    assert release.self_test(encoder.card, encoder.embed) <= encoder.card.tolerance
    batch = np.zeros((MOST_WINDOWS + 1, *features.shape(encoder.spec)), features.dtype(encoder.spec))
    np.testing.assert_allclose(encoder.embed(batch), Encoder.load(file).embed(batch), atol=1e-2)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert Workshop(name, tmp_path).ready(file).provider == encoder.provider
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == kept  # nothing built


@pytest.mark.parametrize("name", ON_GPU)
def test_the_memory_of_the_gpu_comes_back_with_the_encoder(tmp_path, name):
    if reason := RUNTIMES[name].missing():
        pytest.skip(reason)
    free = torch.cuda.mem_get_info()[0]
    encoder = Workshop(name, tmp_path).ready(FILES[0])
    assert torch.cuda.mem_get_info()[0] < free
    del encoder
    assert wait(lambda: torch.cuda.mem_get_info()[0] >= free - (8 << 20))


@pytest.mark.parametrize("name", ON_GPU)
def test_a_killed_encoder_comes_back_on_the_gpu(tmp_path, name):
    if reason := RUNTIMES[name].missing():
        pytest.skip(reason)
    encoder = Workshop(name, tmp_path).ready(FILES[0])
    os.kill(encoder._session.pid, signal.SIGKILL)

    def answers():
        try:
            return release.self_test(encoder.card, encoder.embed) <= encoder.card.tolerance
        except ReleaseError:
            return False

    assert not answers()
    assert wait(answers)
