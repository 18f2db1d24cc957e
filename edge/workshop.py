"""Makes encoders ready on this device: chooses the runtime, proves it in a child, builds engines, opens sessions.

    auto              the first row of edge.runtimes.RUNTIMES that works; what was passed over is told, with why
    name of a row     that one, or the encoder is refused (check `runtime`)

A file is first made ready in a child process, because runtimes are known to crash rather than raise. That it went well
is noted (edge.engines), so that a restart does not pay for it again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from edge import cuda
from edge.cuda import Gpu
from edge.encoder import Encoder
from edge.encoder_process import EncoderProcess
from edge.engines import Engines
from edge.runtimes import RUNTIMES, Opened, Place, Runtime
from edge.worker import Worker
from lineside import onnx_metadata, release
from lineside.clock import Clock, SystemClock
from lineside.errors import ReleaseError
from lineside.files import sha256

log = logging.getLogger(__name__)
AUTO = "auto"


class Workshop:
    """Of one device. `ready` may take as long as an engine takes to build; meanwhile `doing` says what is done."""

    def __init__(
        self,
        choice: str,
        folder: Path,
        clock: Clock | None = None,
        runtimes: Mapping[str, Runtime] = RUNTIMES,
    ) -> None:
        self._clock = clock or SystemClock()
        self._engines = Engines(folder, self._clock)
        self._choice, self._runtimes = choice, runtimes
        self._one = threading.Lock()  # one at a time: two builds would only take each other's cores and memory
        self.doing = ""

    @cached_property
    def gpu(self) -> Gpu | str:
        """The GPU of this machine, or why there is none; looked for only where a runtime could use it."""
        return cuda.found()

    def ready(self, path: Path, look: bool = False) -> Encoder:
        """The encoder in a file whose hash the caller has verified, in a session that works.

        With `look` nothing on the disk is changed, and an engine that is not built counts as one that cannot be.
        Raises ReleaseError with check `card` or `prepare` for what the file says of itself, `runtime` when no runtime
        that may be taken executes it, `storage`.
        """
        data = path.read_bytes()
        card = release.from_metadata(onnx_metadata.read(data, path.name), path.name)
        allowed, passed = self._allowed(card.name)
        with self._one:
            for runtime in allowed:
                try:
                    opened = self._on(runtime, card, self._place(runtime, path, sha256(data)), look)
                    encoder = Encoder.of(card, opened.session, _told(opened.provider, passed))
                    if runtime is not allowed[-1]:  # who computes something else gives way too
                        release.self_test(card, encoder.embed)
                    return encoder
                except ReleaseError as error:
                    if error.check not in ("runtime", "golden") or runtime is allowed[-1]:
                        raise
                    log.warning("%s", error)
                    passed.append(f"{runtime.name}: {error.told}")
        raise AssertionError("the last one returns or raises")

    def installed(self) -> dict[str, str]:
        """By runtime, why it cannot be taken here; empty where it can."""
        return {name: self._missing(runtime) for name, runtime in self._runtimes.items()}

    def prune(self, models: Collection[str]) -> None:
        """Forget what was made of other encoders than those with these hashes."""
        usable = [runtime for runtime in self._runtimes.values() if not runtime.missing()]
        self._engines.prune(models, [self._about(runtime) for runtime in usable])

    def _allowed(self, name: str) -> tuple[list[Runtime], list[str]]:
        """The runtimes to try, best first, and those that are installed and still cannot be taken, each with why."""
        if self._choice != AUTO:
            runtime = self._runtimes[self._choice]
            if missing := self._missing(runtime):
                mend = 'install what is missing, or set [device] runtime = "auto"'
                raise ReleaseError("runtime", name, f"{self._choice} was asked for, but {missing}", mend)
            return [runtime], []
        allowed, passed = [], []
        for runtime in self._runtimes.values():
            if not (missing := self._missing(runtime)):
                allowed.append(runtime)
            elif not runtime.missing():
                passed.append(f"{runtime.name}: {missing}")
        if not allowed:
            raise ReleaseError("runtime", name, "no runtime can be taken here", "install onnxruntime")
        return allowed, passed

    def _missing(self, runtime: Runtime) -> str:
        if missing := runtime.missing():
            return missing
        return f"no GPU can be used ({self.gpu})" if runtime.gpu and isinstance(self.gpu, str) else ""

    def _about(self, runtime: Runtime) -> str:
        """All that what a runtime makes depends on, but the file."""
        return f"{runtime.name}; {runtime.version()}; {self.gpu if runtime.gpu else 'CPU'}"

    def _place(self, runtime: Runtime, path: Path, model: str) -> Place:
        about = self._about(runtime)
        made, timing = (str(self._engines.place(of, about).resolve()) for of in (model, ""))
        return Place(str(path.resolve()), model, made, timing)

    def _on(self, runtime: Runtime, card: release.Card, place: Place, look: bool) -> Opened:
        """A session of this runtime, made ready before where it was not yet."""
        if kept := self._engines.whole(place.sha256, self._about(runtime)):
            pass
        elif look:
            self._try(runtime, card.name, place)
        else:
            self._make(runtime, card.name, place)
        try:
            return self._open(runtime, card.name, place)
        except ReleaseError as error:
            if look or not (kept and runtime.builds):
                raise
            log.warning("%s; it is built anew", error)  # a library may have changed that the key does not know of
        self._make(runtime, card.name, place)
        return self._open(runtime, card.name, place)

    def _open(self, runtime: Runtime, name: str, place: Place) -> Opened:
        if not runtime.gpu:
            return runtime.open(place)
        worker = Worker(name, lambda: EncoderProcess(name, runtime, place), self._clock)
        return Opened(worker, worker.provider, worker.batch)

    def _try(self, runtime: Runtime, name: str, place: Place) -> None:
        if runtime.builds:
            raise ReleaseError("runtime", name, "its engine is not built yet", "the agent builds it when it starts")
        EncoderProcess(name, runtime, place).make(self._tell)

    def _make(self, runtime: Runtime, name: str, place: Place) -> None:
        about, since_ns = self._about(runtime), self._clock.now_ns()
        if runtime.builds and not self._engines.whole("", about):
            self._engines.begin("", about)
        self._engines.begin(place.sha256, about)
        doing = f"{name} is made ready for {runtime.name}"
        self.doing = doing
        try:
            EncoderProcess(name, runtime, place).make(lambda told: self._tell(f"{doing}: {told}"))
        finally:
            self.doing = ""
        self._engines.note(place.sha256, about, since_ns)
        if runtime.builds:
            self._engines.note("", about, since_ns)

    def _tell(self, doing: str) -> None:
        self.doing = doing


def _told(provider: str, passed: Sequence[str]) -> str:
    """What executes an encoder, and what does not though it is installed.

    >>> _told("CPUExecutionProvider", ["onnxruntime-cuda: no GPU can be used (no driver)"])
    'CPUExecutionProvider instead of onnxruntime-cuda: no GPU can be used (no driver)'
    """
    return f"{provider} instead of {'; '.join(passed)}" if passed else provider
