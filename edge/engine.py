"""TensorRT's own engines: an encoder file compiled for the GPU of this device, and run on it.

Written against the API that the `tensorrt` package of JetPack has (10.x) and newer ones keep: the network is strongly
typed, so that its precision is that of the file (fp16 tensors, explicit quantise/dequantise pairs) and no flag's;
TensorRT 11 has no such flags any more. `trt` is the module; `tensorrt_rtx` has the same API and builds without a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.cuda import Cuda
from lineside.errors import ReleaseError

MOST_WINDOWS = 32  # in one batch, where the file leaves that open: commissioning gives many, running gives one
WORKSPACE_BYTES = 1 << 30  # a Jetson's GPU takes it from the memory that everything else lives in
FLAGS = f"strongly typed, batch 1 to {MOST_WINDOWS}"
OTHER = "export it again for this runtime, or choose another [device] runtime"
Tell = Callable[[str], None]


def build(trt: Any, model: bytes, name: str, timing: bytes | None, tell: Tell) -> tuple[bytes, bytes | None]:
    """Compile the ONNX file `name`; the engine, and the timing cache (None in, None out: without one).

    `tell` hears of progress. Raises ReleaseError (check `runtime`) with TensorRT's own words when it does not take it.
    """
    log = _log(trt)
    builder = trt.Builder(log)
    network = parsed(trt, builder, model, name, log)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.progress_monitor = monitor = _monitor(trt, tell)
    if (profile := _profile(builder, network, name)) is not None:
        config.add_optimization_profile(profile)
    if timing is not None:
        config.set_timing_cache(config.create_timing_cache(timing), ignore_mismatch=False)
    engine = builder.build_serialized_network(network, config)
    del monitor  # it has to outlive the build
    if engine is None:
        raise _refused(name, "; ".join(log.said) or "no engine came of it")
    return bytes(engine), None if timing is None else bytes(config.get_timing_cache().serialize())


def parsed(trt: Any, builder: Any, model: bytes, name: str, log: Any) -> Any:
    """The network of an ONNX file, typed as the file is. Raises ReleaseError (check `runtime`) naming what is refused.

    `builder` has to outlive it.
    """
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise _refused(name, "; ".join(f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in errors))
    if network.num_inputs != 1 or network.get_input(0).name != "window":
        raise _refused(name, "it has other inputs than `window`")
    return network


def _refused(name: str, told: str) -> ReleaseError:
    return ReleaseError("runtime", name, f"TensorRT refuses it ({told})", OTHER)


def _profile(builder: Any, network: Any, name: str) -> Any | None:
    """Shapes that a dynamic batch may have; None for a file whose shapes are fixed."""
    window = network.get_input(0)
    first, *rest = tuple(window.shape)
    if min(rest) < 0:
        raise _refused(name, f"its input is {window.shape}: more than the batch is left open")
    if first >= 0:
        return None
    profile = builder.create_optimization_profile()
    profile.set_shape(window.name, (1, *rest), (1, *rest), (MOST_WINDOWS, *rest))
    return profile


def _log(trt: Any) -> Any:
    """A logger that keeps errors, to be told as a reason."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.said.append(message)

    return Log()


def _monitor(trt: Any, tell: Tell) -> Any:
    progress = Progress(tell)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, _: str | None, steps: int) -> None:
            progress.begin(phase, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            progress.step(phase, step)
            return True

        def phase_finish(self, phase: str) -> None:
            progress.end(phase)

    return Monitor()


class Progress:
    """Phases within phases as one percentage, told each time that it grows.

    >>> told = []
    >>> progress = Progress(told.append)
    >>> progress.begin("build", 2), progress.begin("time", 4), progress.step("time", 0), progress.end("time")
    (None, None, None, None)
    >>> progress.step("build", 0)
    >>> told
    ['12 %', '50 %']
    """

    def __init__(self, tell: Tell) -> None:
        self._tell, self._most = tell, 0
        self._phases: dict[str, tuple[int, int]] = {}  # outermost first: steps done, of how many

    def begin(self, phase: str, steps: int) -> None:
        """A phase of so many steps begins, inside those that have not ended."""
        self._phases[phase] = (0, max(1, steps))

    def step(self, phase: str, step: int) -> None:
        """A step of it, counted from 0, is done."""
        done, steps = self._phases.get(phase, (0, 1))
        self._phases[phase] = (max(done, step + 1), steps)
        share = 0.0
        for done, steps in reversed([*self._phases.values()]):
            share = min(1.0, (done + share) / steps) if done < steps else 1.0
        self._reached(int(100 * share))

    def end(self, phase: str) -> None:
        """It has ended, perhaps early."""
        if self._phases.pop(phase, None) and not self._phases:
            self._reached(100)

    def _reached(self, percent: int) -> None:
        if percent > self._most:
            self._most = percent
            self._tell(f"{percent} %")


class Engine:
    """An engine file as a session of an encoder: prepared windows in, embedding and features out.

    `batch` is how many windows one run takes at most. Raises ReleaseError (check `runtime`) when this device's TensorRT
    or GPU does not take it; `engine` must be bytes that this device made itself.
    """

    def __init__(self, trt: Any, engine: bytes, name: str) -> None:
        try:
            self._cuda = Cuda()
        except (OSError, RuntimeError) as error:
            raise ReleaseError("runtime", name, f"no GPU can be used ({error})", "look at its driver") from error
        self._trt, log = trt, _log(trt)
        self._runtime = trt.Runtime(log)
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise _refused(name, "; ".join(log.said) or "the engine cannot be loaded")
        self.provider = f"TensorRT {trt.__version__}"
        self._context = self._engine.create_execution_context()
        shape = tuple(self._engine.get_tensor_shape("window"))
        self.batch = shape[0] if shape[0] > 0 else MOST_WINDOWS
        self._stream = self._cuda.stream()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._context.set_input_shape("window", (self.batch, *shape[1:]))
        self._places = {name: self._allocate(name) for name in names}

    def run(self, wanted: Sequence[str], fed: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """As onnxruntime's `run`; at most `batch` windows."""
        window = np.ascontiguousarray(fed["window"])
        if not self._context.set_input_shape("window", window.shape):
            raise ValueError(f"windows of shape {window.shape} for an engine of {self.batch}")
        self._cuda.to_gpu(self._places["window"], window.tobytes())
        if not self._context.execute_async_v3(self._stream):
            raise RuntimeError("TensorRT did not run the engine")
        self._cuda.wait(self._stream)
        return [self._taken(name) for name in wanted]

    def _allocate(self, name: str) -> int:
        address = self._cuda.allocate(self._bytes(name))
        self._context.set_tensor_address(name, address)
        return address

    def _bytes(self, name: str) -> int:
        return math.prod(map(int, self._context.get_tensor_shape(name))) * self._kind(name).itemsize

    def _kind(self, name: str) -> np.dtype[Any]:
        kind: np.dtype[Any] = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        return kind

    def _taken(self, name: str) -> NDArray[np.generic]:
        data = self._cuda.from_gpu(self._places[name], self._bytes(name))
        return np.frombuffer(data, self._kind(name)).reshape(tuple(self._context.get_tensor_shape(name)))
