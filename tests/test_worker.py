"""An encoder in a process of its own: it computes what one in ours computes, and may die or hang without harm."""

from __future__ import annotations

import gc
import mmap
import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest

from edge import encoder_process, worker
from edge.config import DeviceConfig, DeviceSettings
from edge.cuda import Gpu
from edge.encoder import Encoder
from edge.encoder_process import Array, EncoderProcess, put
from edge.ensemble import Ensemble
from edge.pipeline import Pipeline
from edge.replay import simulated
from edge.runtimes import RUNTIMES, Place
from edge.worker import Worker
from edge.workshop import Workshop
from lineside import features, release
from lineside.clock import SimulatedClock, SystemClock
from lineside.errors import ReleaseError
from lineside.files import sha256
from lineside.messages import Embeddings
from tests.line_broker import wait
from tests.line_device import DATA, SENSORS, SITE, START_NS

APART = replace(RUNTIMES["onnxruntime-cpu"], gpu=True)  # as on a GPU: the same code, another row
FILE = DATA / "camera-1.onnx"
PLACE = Place(str(FILE), sha256(FILE.read_bytes()))
CONFIG = DeviceConfig(device=DeviceSettings(id="edge-1", site=SITE, station="press"), sensors=SENSORS)


def begin() -> EncoderProcess:
    return EncoderProcess("camera-1", APART, PLACE)


def windows(count: int) -> np.ndarray:
    spec = PLACE_SPEC
    return np.random.default_rng(1).integers(0, 255, (count, *features.shape(spec))).astype(np.uint8)


PLACE_SPEC = features.from_json(PLACE.card().prepare)


def embedded(made: Worker, count: int = 1) -> list[np.ndarray]:
    return made.run(["embedding", "features"], {"window": windows(count)})


def answers(made: Worker) -> bool:
    try:
        return bool(embedded(made))
    except ReleaseError:
        return False


def test_a_worker_computes_what_the_encoder_in_this_process_computes(tmp_path) -> None:
    workshop = Workshop("onnxruntime-cpu", tmp_path, runtimes={APART.name: APART})
    workshop.gpu = Gpu("none", "0.0", "0")
    apart, here = workshop.ready(FILE), Encoder.load(FILE)
    assert isinstance(apart._session, Worker)
    assert apart.provider == here.provider == "CPUExecutionProvider"
    release.self_test(apart.card, apart.embed)
    many = windows(70)  # more than go into one batch
    for one, other in zip(apart.encode(many), here.encode(many), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_worker_that_was_killed_is_told_at_once_and_comes_back_by_itself() -> None:
    made = Worker("camera-1", begin, SystemClock())
    first, before = made.pid, embedded(made)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(ReleaseError, match=r"signal 9.*it is begun again by itself") as error:
        embedded(made)
    assert error.value.check == "runtime"
    with pytest.raises(ReleaseError, match="signal 9"):
        embedded(made)  # still away: nobody waits for the next one
    assert wait(lambda: answers(made))
    assert made.pid != first
    np.testing.assert_array_equal(embedded(made)[0], before[0])


@pytest.mark.slow
def test_a_worker_that_hangs_is_killed_after_a_bounded_wait(monkeypatch) -> None:
    made = Worker("camera-1", begin, SystemClock())
    embedded(made)
    hung = made.pid
    monkeypatch.setattr(worker, "ANSWER_S", 0.3)
    os.kill(hung, signal.SIGSTOP)
    with pytest.raises(ReleaseError, match=r"gave no answer for 0.3 s and was killed"):
        embedded(made)
    assert gone(hung)
    monkeypatch.setattr(worker, "ANSWER_S", 30.0)
    assert wait(lambda: answers(made))


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
def test_the_process_ends_with_the_last_reference_to_the_encoder() -> None:
    """So a new encoder on a GPU gets the memory of the old one back."""
    made = Worker("camera-1", begin, SystemClock())
    pid = made.pid
    assert not gone(pid)
    del made
    gc.collect()
    assert gone(pid)


class Dying:
    """A process that answers once, and how often it was begun."""

    def __init__(self) -> None:
        self.begun = 0

    def __call__(self) -> EncoderProcess:
        self.begun += 1
        if self.begun > 1:
            raise ReleaseError("runtime", "camera-1", "no memory on the GPU", "wait")
        return begin()


def test_a_worker_that_does_not_come_back_is_tried_less_and_less_often() -> None:
    clock, dying = SimulatedClock(), Dying()
    made = Worker("camera-1", dying, clock)
    os.kill(made.pid, signal.SIGKILL)
    tried = []
    for second in range(40):
        with pytest.raises(ReleaseError):
            embedded(made)
        for thread in threading.enumerate():
            if thread.name.startswith("opening"):
                thread.join()
        if dying.begun - 1 > len(tried):
            tried.append(second)
        clock.sleep(1.0)
    assert tried == [1, 3, 7, 15, 31]
    with pytest.raises(ReleaseError, match="no memory on the GPU"):
        embedded(made)


def test_a_file_that_was_exchanged_is_not_opened_again(tmp_path) -> None:
    """Another version may have been staged where the file of a running encoder was."""
    file = tmp_path / "encoder.onnx"
    file.write_bytes(FILE.read_bytes() + b"\0")
    place = Place(str(file), PLACE.sha256)
    with pytest.raises(ReleaseError, match="the file is another than before"):
        EncoderProcess("camera-1", APART, place).open(30.0)


@pytest.mark.parametrize("array", [Array(-1, (4,), "<f4"), Array(0, (-1,), "<f4"), Array(4000, (100,), "<f4")])
def test_an_answer_beyond_the_memory_is_refused(array) -> None:
    with mmap.mmap(-1, 4096) as memory, pytest.raises(ValueError, match="beyond the memory"):
        array.of(memory)


def test_arrays_go_through_the_memory_as_they_are() -> None:
    arrays = [np.arange(6, dtype="<f4").reshape(2, 3), np.array([[7, 8]], np.uint8), np.zeros((0, 4), "<f4")]
    with mmap.mmap(-1, 4096) as memory:
        for array, laid in zip(arrays, put(memory, arrays), strict=True):
            np.testing.assert_array_equal(laid.of(memory), array)
        with pytest.raises(ValueError, match="do not fit"):
            put(memory, [np.zeros(4097, np.uint8)])


def test_windows_that_do_not_fit_the_memory_are_refused_and_the_worker_goes_on(monkeypatch) -> None:
    made = Worker("camera-1", begin, SystemClock())
    with pytest.raises(ValueError, match="do not fit"):
        made.run(["embedding"], {"window": np.zeros((1, encoder_process.MEMORY_BYTES + 1), np.uint8)})
    assert answers(made)


def test_windows_that_the_graph_refuses_are_told_with_its_own_words() -> None:
    made = Worker("camera-1", begin, SystemClock())
    with pytest.raises(ReleaseError, match=r"cannot run \(.*[Ii]nvalid"):
        made.run(["embedding"], {"window": np.zeros((1, 2, 3, 4), np.uint8)})


@pytest.mark.slow
def test_an_error_of_the_runtime_ends_its_process_for_a_fresh_one() -> None:
    """CUDA's errors stay for the life of a process: one that said an error once may never answer right again."""
    made = Worker("camera-1", begin, SystemClock())
    first = made.pid
    with pytest.raises(ReleaseError, match="cannot run") as error:
        made.run(["embedding"], {"window": np.zeros((1, 2, 3, 4), np.uint8)})
    held = error.value.__cause__.__traceback__  # as a log or a debugger would hold what was running
    assert gone(first)
    assert held is not None
    assert wait(lambda: answers(made))
    assert made.pid != first


@pytest.mark.slow
def test_a_dead_encoder_leaves_the_fusion_by_name_and_returns(monkeypatch) -> None:
    """kill -9 on the camera's encoder: its windows are senseless, the microphone's go on."""
    made = Worker("camera-1", begin, SystemClock())
    pipeline = Pipeline(CONFIG)
    microphone = Encoder.load(DATA / "microphone-1.onnx")
    pipeline.ensemble = Ensemble({"camera": Encoder.of(PLACE.card(), made, made.provider), "microphone": microphone})
    samples = simulated(CONFIG, DATA, START_NS, 600.0)

    def moment() -> set[str]:
        for run in samples:
            for message in pipeline.push(run):
                if isinstance(message, Embeddings):
                    return {one.sensor for one in message.embeddings}
        raise AssertionError("samples have an end")

    assert moment() == {"cam0", "mic0"}
    os.kill(made.pid, signal.SIGKILL)
    assert moment() == {"mic0"}
    assert "camera-1: runtime failed: its process ended (signal 9); it is begun again by itself" in "".join(
        pipeline.problems
    )
    assert pipeline.counters.flagged["cam0"]["senseless"] == 1
    assert wait(lambda: moment() == {"cam0", "mic0"} and not pipeline.problems)
