"""The ways to execute an encoder file on a device, best first: one row each.

A row is taken by its name (`[device] runtime`) or, with `auto`, when it is the first that works. What really executes
is read back from the session and asserted: ONNX Runtime puts the CPU in the place of a provider that it cannot load.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edge import engine
from edge.engine import MOST_WINDOWS, Tell
from edge.unsigned import unsigned
from lineside import features, onnx_metadata, release
from lineside.errors import ReleaseError
from lineside.files import sha256, write_atomic

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
ENGINE, TIMING = "encoder.engine", "timing.cache"
TRIAL_S, BUILD_S = 120.0, 1500.0  # a session on a busy machine; an engine, which was seen to take ten minutes
AGAIN = "bring the version in again"


class Place(msgspec.Struct, frozen=True):
    """An encoder file by path and hash; `made` is for what a runtime makes of it, `timing` for what serves all."""

    model: str
    sha256: str
    made: str = ""
    timing: str = ""
    threads: int = 1

    def read(self) -> bytes:
        """The file. Raises ReleaseError (check `hash`) when it is another by now, (`missing`) when it is gone."""
        path = Path(self.model)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ReleaseError("missing", path.name, f"cannot be read ({error.strerror})", AGAIN) from error
        if sha256(data) != self.sha256:
            raise ReleaseError("hash", path.name, "the file is another than before", AGAIN)
        return data

    def card(self) -> release.Card:
        """What the file says of itself. Raises ReleaseError (also check `card`)."""
        return release.from_metadata(onnx_metadata.read(self.read(), self.model), self.model)


class Session(Protocol):
    """What executes an encoder: outputs by name from the input `window`, as onnxruntime's InferenceSession does."""

    def run(self, wanted: Sequence[str], fed: Mapping[str, NDArray[np.generic]]) -> Sequence[NDArray[np.generic]]: ...


@dataclass(frozen=True)
class Opened:
    """A session, what really executes it, and how many windows it takes at once."""

    session: Session
    provider: str
    batch: int

    def run(self, wanted: Sequence[str], fed: Mapping[str, NDArray[np.generic]]) -> Sequence[NDArray[np.generic]]:
        """As the session's; raises nothing but ReleaseError (check `runtime`)."""
        try:
            return self.session.run(wanted, fed)
        except Exception as error:  # runtimes raise classes of their own that share no base
            mend = "its graph and its card differ; export it again"
            raise ReleaseError("runtime", self.provider, f"cannot run ({error})", mend) from error


@dataclass(frozen=True)
class Runtime:
    """A row. `missing` says why it is not installed, empty where it is; `version` what its files depend on.

    One with a `gpu` lives in a process of its own, which gives the GPU's memory back when it ends. `make` prepares a
    file once, in a child that may crash: where it `builds` an engine comes of it, else a session is only tried.
    """

    name: str
    gpu: bool
    builds: bool
    missing: Callable[[], str]
    version: Callable[[], str]
    make: Callable[[Place, Tell], None]
    open: Callable[[Place], Opened]

    @property
    def patience_s(self) -> float:
        """What `make` may take."""
        return BUILD_S if self.builds else TRIAL_S


# ---- ONNX Runtime


def _providers(provider: str, place: Place, building: bool) -> list[Any]:
    """The provider with its options, and the CPU behind it for the few nodes that only the CPU has."""
    if provider == CPU:
        return [CPU]
    if provider == CUDA:
        return [CUDA, CPU]
    return [(TENSORRT, _tensorrt_options(place, building)), CUDA, CPU]


def _tensorrt_options(place: Place, building: bool) -> dict[str, str]:
    """Options of the provider (ONNX Runtime's documentation, TensorRT Execution Provider).

    Its networks are weakly typed: fp16 tensors and quantise/dequantise pairs count only with the flag of that name.
    The timing cache is written while an engine is built and left alone later, so that what we noted of it stays true.
    """
    card = place.card()
    options = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": place.made}
    options["trt_max_workspace_size"] = str(engine.WORKSPACE_BYTES)
    if building:
        options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": place.timing}
    if card.precision in ("fp16", "int8"):
        options[f"trt_{card.precision}_enable"] = "1"
    if not _fixed(_session(place, [CPU])):
        shape = "x".join(map(str, features.shape(features.from_json(card.prepare))))
        for which, count in (("min", 1), ("opt", 1), ("max", MOST_WINDOWS)):
            options[f"trt_profile_{which}_shapes"] = f"window:{count}x{shape}"
    return options


def _fixed(session: Any) -> int:
    """The batch that the file is fixed to; 0 where it is open."""
    first = session.get_inputs()[0].shape[0]
    return first if isinstance(first, int) else 0


def _session(place: Place, providers: list[Any]) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = place.threads
    options.log_severity_level = 3
    data = place.read()
    try:
        data = unsigned(data) if providers == [CPU] else data
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a provider is missing: we look ourselves which one it took
            return onnxruntime.InferenceSession(data, options, providers=providers, enable_fallback=0)
    except Exception as error:  # the runtime raises classes of its own that share no base
        told, mend = f"ONNX Runtime refuses it ({error})", "export it again for this runtime"
        raise ReleaseError("runtime", Path(place.model).name, told, mend) from error


def _opened(provider: str, place: Place, building: bool = False) -> Opened:
    session = _session(place, _providers(provider, place, building))
    if (really := session.get_providers()[0]) != provider:
        told = f"{provider} was asked for and {really} took its place"
        raise ReleaseError("runtime", Path(place.model).name, told, "look whether GPU, driver and libraries fit")
    return Opened(session, provider, _fixed(session) or MOST_WINDOWS)


def _tried(provider: str, place: Place, _: Tell) -> None:
    """Open a session and run it once: TensorRT builds its engines then, and what crashes does so here."""
    opened, spec = _opened(provider, place, building=True), features.from_json(place.card().prepare)
    window = np.zeros((1, *features.shape(spec)), features.dtype(spec))
    opened.run(["embedding", "features"], {"window": window})


def _onnxruntime(name: str, provider: str) -> Runtime:
    def missing() -> str:
        return "" if provider in onnxruntime.get_available_providers() else f"this ONNX Runtime has no {provider}"

    return Runtime(
        name=name,
        gpu=provider != CPU,
        builds=provider == TENSORRT,
        missing=missing,
        version=lambda: f"onnxruntime {onnxruntime.__version__}",
        make=lambda place, tell: _tried(provider, place, tell),
        open=lambda place: _opened(provider, place),
    )


# ---- TensorRT by itself


def _missing_tensorrt() -> str:
    return "" if importlib.util.find_spec("tensorrt") else "the Python package tensorrt is not installed"


def _tensorrt_version() -> str:
    """Of the package's metadata: what is not loaded cannot crash."""
    try:
        return f"tensorrt {metadata.version('tensorrt')}, {engine.FLAGS}"
    except metadata.PackageNotFoundError:
        return f"tensorrt of unknown version, {engine.FLAGS}"


def _build(place: Place, tell: Tell) -> None:
    timing = Path(place.timing, TIMING)
    known = timing.read_bytes() if timing.exists() else b""
    made, learned = engine.build(importlib.import_module("tensorrt"), place.read(), place.model, known, tell)
    write_atomic(Path(place.made, ENGINE), made)
    write_atomic(timing, learned or b"")


def _open_engine(place: Place) -> Opened:
    made = Path(place.made, ENGINE).read_bytes()
    session = engine.Engine(importlib.import_module("tensorrt"), made, place.model)
    return Opened(session, session.provider, session.batch)


RUNTIMES: dict[str, Runtime] = {
    row.name: row
    for row in (
        Runtime("tensorrt", True, True, _missing_tensorrt, _tensorrt_version, _build, _open_engine),
        _onnxruntime("onnxruntime-tensorrt", TENSORRT),
        _onnxruntime("onnxruntime-cuda", CUDA),
        _onnxruntime("onnxruntime-cpu", CPU),
    )
}
