"""How encoders are made ready: proven in a child, remembered, and by a runtime that really executes them."""

from __future__ import annotations

import json
import os
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from edge import runtimes
from edge.config import DeviceConfig
from edge.cuda import Gpu
from edge.encoder_process import EncoderProcess
from edge.engines import NOTE, Engines
from edge.runtimes import CPU, CUDA, RUNTIMES, Opened, Place
from edge.workshop import Workshop
from lineside import config
from lineside.clock import SimulatedClock
from lineside.errors import ConfigError, ReleaseError
from lineside.files import sha256
from tests.line_device import DATA

FILE = DATA / "camera-1.onnx"
MODEL = sha256(FILE.read_bytes())
HERE = Gpu("Orin", "8.7", "12060 # R36 (release)")
LISTED = {name: replace(row, missing=lambda: "") for name, row in RUNTIMES.items()}


@pytest.fixture
def children(monkeypatch) -> list[str]:
    """The runtimes that a file was made ready for in a child."""
    made = []
    original = EncoderProcess.make

    def make(self: EncoderProcess, tell: object) -> None:
        made.append(self._runtime.name)
        original(self, tell)

    monkeypatch.setattr(EncoderProcess, "make", make)
    return made


def fake(monkeypatch, folder: Path, package: str, code: str) -> None:
    """Let children find this package before the real one; ours is loaded already."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(textwrap.dedent(code))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(Path.cwd())]))


def test_the_cpu_is_taken_where_there_is_nothing_else(tmp_path) -> None:
    encoder = Workshop("auto", tmp_path).ready(FILE)
    assert encoder.provider == CPU
    assert encoder.card.name == "camera-1"


def test_a_file_is_tried_in_a_child_once_and_a_restart_does_not_pay_again(tmp_path, children) -> None:
    for _ in range(2):
        assert Workshop("auto", tmp_path).ready(FILE).provider == CPU
    assert children == ["onnxruntime-cpu"]
    [note] = tmp_path.glob(f"*/{NOTE}")
    told = json.loads(note.read_bytes())
    assert (told["model"], told["files"]) == (MODEL, {})
    assert told["about"].startswith("onnxruntime-cpu; onnxruntime ")
    assert oct(note.parent.stat().st_mode & 0o777) == "0o700"


CRASHES = {
    "crashes": ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", r"its process ended \(signal 11\)"),
    "ends": ("import os\nos._exit(3)", r"its process ended \(exit 3\)"),
    "hangs": ("import time\ntime.sleep(600)", r"gave no answer for 0.5 s and was killed"),
    "breaks": ("raise ImportError('libcublas.so.12')", r"its process ended \(exit 1\)"),
    "refuses": (
        """
        __version__ = "1"
        def get_available_providers(): return ["CPUExecutionProvider"]
        class SessionOptions: pass
        def InferenceSession(*_, **__): raise RuntimeError("opset 99 is not known")
        """,
        r"ONNX Runtime refuses it \(opset 99 is not known\)",
    ),
    "substitutes": (
        """
        __version__ = "1"
        def get_available_providers(): return ["CPUExecutionProvider"]
        class SessionOptions: pass
        class InferenceSession:
            def __init__(self, *_, **__): pass
            def get_providers(self): return ["AzureExecutionProvider"]
        """,
        "CPUExecutionProvider was asked for and AzureExecutionProvider took its place",
    ),
}


@pytest.mark.parametrize("what", CRASHES)
def test_a_runtime_that(tmp_path, monkeypatch, what) -> None:
    code, told = CRASHES[what]
    fake(monkeypatch, tmp_path / "fake", "onnxruntime", code)
    if what == "hangs":
        monkeypatch.setattr(runtimes, "TRIAL_S", 0.5)
    shop = Workshop("onnxruntime-cpu", tmp_path / "kept")
    with pytest.raises(ReleaseError, match=told) as error:
        shop.ready(FILE)
    assert (error.value.check, error.value.thing) == ("runtime", "camera-1")
    assert not [*tmp_path.glob(f"kept/*/{NOTE}")]
    assert shop.doing == ""


def test_a_provider_that_the_cpu_took_the_place_of_is_refused() -> None:
    """This ONNX Runtime has no CUDA: asked for it all the same, it opens a session on the CPU without a word."""
    place = Place(str(FILE), MODEL)
    with pytest.raises(ReleaseError, match=f"{CUDA} was asked for and {CPU} took its place") as error:
        RUNTIMES["onnxruntime-cuda"].open(place)
    assert error.value.check == "runtime"


@pytest.mark.parametrize("choice", ["tensorrt", "onnxruntime-tensorrt", "onnxruntime-cuda"])
def test_a_runtime_that_was_asked_for_and_is_not_there_is_refused_by_name(tmp_path, choice) -> None:
    rows = RUNTIMES | {"tensorrt": replace(RUNTIMES["tensorrt"], missing=lambda: "tensorrt is not installed")}
    with pytest.raises(ReleaseError, match=f"{choice} was asked for, but") as error:
        Workshop(choice, tmp_path, runtimes=rows).ready(FILE)
    assert error.value.check == "runtime"
    assert '[device] runtime = "auto"' in error.value.mend


@pytest.mark.slow
def test_auto_passes_over_what_does_not_work_and_says_why(tmp_path) -> None:
    """As where onnxruntime-gpu is installed and its CUDA libraries are not."""
    rows = {name: LISTED[name] for name in ("onnxruntime-cuda", "onnxruntime-cpu")}
    shop = Workshop("auto", tmp_path, runtimes=rows)
    shop.gpu = HERE
    told = shop.ready(FILE).provider
    assert told == f"{CPU} instead of onnxruntime-cuda: {CUDA} was asked for and {CPU} took its place"


def test_auto_says_that_a_gpu_is_missing_only_where_something_is_installed_for_one(tmp_path) -> None:
    shop = Workshop("auto", tmp_path, runtimes={n: LISTED[n] for n in ("onnxruntime-cuda", "onnxruntime-cpu")})
    shop.gpu = "libcuda.so.1 is not here"
    passed = "onnxruntime-cuda: no GPU can be used (libcuda.so.1 is not here)"
    assert shop.ready(FILE).provider == f"{CPU} instead of {passed}"
    assert Workshop("auto", tmp_path).ready(FILE).provider == CPU


def test_auto_passes_over_a_runtime_that_computes_something_else(tmp_path, monkeypatch) -> None:
    class Wrong:
        def run(self, *_: object) -> list:
            embedding, features = right.open(Place(str(FILE), MODEL)).session.run(*_)
            return [embedding[:, ::-1], features]

    right = RUNTIMES["onnxruntime-cpu"]
    wrong = replace(right, name="wrong", open=lambda _: Opened(Wrong(), "Wrong", 1), make=right.make)
    shop = Workshop("auto", tmp_path, runtimes={"wrong": wrong, "onnxruntime-cpu": right})
    monkeypatch.setattr(EncoderProcess, "make", lambda *_: None)  # the child knows no row of that name
    assert shop.ready(FILE).provider.startswith(f"{CPU} instead of wrong: 1 - cosine is ")


def test_a_kept_engine_that_cannot_be_opened_any_more_is_built_anew(tmp_path, monkeypatch) -> None:
    """A library was exchanged below the runtime: the hash is right, and the engine is of no use."""
    makes, opens, right = [], [], RUNTIMES["onnxruntime-cpu"]

    def opened(place: Place) -> Opened:
        opens.append(place)
        if len(opens) == 2:
            raise ReleaseError("runtime", "camera-1", "the engine is of another version", "")
        return right.open(place)

    monkeypatch.setattr(EncoderProcess, "make", lambda *_: makes.append(1))
    row = replace(right, builds=True, open=opened)
    for _ in range(2):
        assert Workshop("auto", tmp_path, runtimes={row.name: row}).ready(FILE).provider == CPU
    assert (len(makes), len(opens)) == (2, 3)


def test_a_file_without_a_card_is_refused_before_any_runtime_sees_it(tmp_path, children) -> None:
    (tmp_path / "e.onnx").write_bytes(b"\0")
    with pytest.raises(ReleaseError) as error:
        Workshop("auto", tmp_path / "kept").ready(tmp_path / "e.onnx")
    assert error.value.check == "card"
    assert children == []


@pytest.mark.slow
def test_a_look_changes_nothing_on_the_disk(tmp_path) -> None:
    assert Workshop("auto", tmp_path / "kept").ready(FILE, look=True).provider == CPU
    assert not (tmp_path / "kept").exists()


def test_the_device_file_knows_just_the_runtimes_of_the_table() -> None:
    text = '[device]\nid="e"\nsite="s"\nstation="p"\nruntime="{}"\n'
    text += '[[sensors]]\nname="c"\nmodality="camera"\nsource="simulation"'
    for name in ("auto", *RUNTIMES):
        assert config.loads(text.format(name), DeviceConfig).device.runtime == name
    with pytest.raises(ConfigError, match="runtime"):
        config.loads(text.format("openvino"), DeviceConfig)


# ---- what is kept


class Kept:
    """An engine of two files, kept as a build leaves it."""

    def __init__(self, folder: Path) -> None:
        self.engines = Engines(folder, SimulatedClock())
        self.place = self.engines.begin("ab", "TensorRT 10.3")
        (self.place / "e.engine").write_bytes(b"compiled")
        (self.place / "e.profile").write_bytes(b"shapes")

    def whole(self) -> bool:
        return self.engines.whole("ab", "TensorRT 10.3")


def test_an_engine_counts_only_with_a_note_of_just_its_files(tmp_path) -> None:
    kept = Kept(tmp_path)
    assert not kept.whole()  # as when the power went during the build
    kept.engines.note("ab", "TensorRT 10.3", 0)
    assert kept.whole()
    assert not kept.engines.whole("ab", "TensorRT 10.4")
    assert not kept.engines.whole("cd", "TensorRT 10.3")


@pytest.mark.parametrize(
    "harm",
    [
        lambda place: (place / "e.engine").write_bytes(b"kompiled"),
        lambda place: (place / "e.engine").unlink(),
        lambda place: (place / "other.engine").write_bytes(b"put there"),
        lambda place: (place / NOTE).write_bytes(b"{}"),
        lambda place: (place / NOTE).unlink(),
    ],
)
def test_an_engine_that_was_changed_is_not_used_and_made_anew(tmp_path, harm) -> None:
    kept = Kept(tmp_path)
    kept.engines.note("ab", "TensorRT 10.3", 0)
    harm(kept.place)
    assert not kept.whole()
    assert [*kept.engines.begin("ab", "TensorRT 10.3").iterdir()] == []


def test_what_belongs_to_no_encoder_is_dropped(tmp_path) -> None:
    kept = Kept(tmp_path)
    kept.engines.note("ab", "TensorRT 10.3", 0)
    for model, about in (("cd", "TensorRT 10.3"), ("", "TensorRT 10.3"), ("", "TensorRT 10.2")):
        kept.engines.begin(model, about)
        kept.engines.note(model, about, 0)
    kept.engines.begin("ab", "interrupted")
    kept.engines.prune({"ab"}, {"TensorRT 10.3"})
    assert {*tmp_path.iterdir()} == {kept.place, kept.engines.place("", "TensorRT 10.3")}
    assert kept.whole()


def test_a_full_disk_is_told_as_such(tmp_path) -> None:
    (tmp_path / "kept").write_text("in the way")
    with pytest.raises(ReleaseError) as error:
        Workshop("auto", tmp_path / "kept").ready(FILE)
    assert error.value.check == "storage"


@pytest.mark.parametrize("change", ["name", "capability", "driver"])
def test_another_gpu_or_driver_is_another_engine(tmp_path, change) -> None:
    one, other = Workshop("auto", tmp_path), Workshop("auto", tmp_path)
    one.gpu, other.gpu = HERE, replace(HERE, **{change: "new"})
    row = RUNTIMES["onnxruntime-tensorrt"]
    assert one._place(row, FILE, MODEL).made != other._place(row, FILE, MODEL).made
    assert one._place(row, FILE, MODEL).made != one._place(row, FILE, "cd").made
