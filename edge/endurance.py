"""What a device costs over time: how its memory grows, and how soon a started agent gives its first score."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.bench import Stream, rss_mb
from edge.config import DeviceConfig, DeviceSettings, SensorSettings
from edge.encoder import Encoder
from edge.outbox import Outbox
from edge.trial import Trial, prepare, settings
from lineside import features, release
from lineside.cli import tell
from lineside.clock import SystemClock
from lineside.errors import LinesideError

DIM, SETTLED, PATIENCE_S = 128, 2_000, 120.0
SPECS: dict[str, features.RawPrepare] = {
    "camera": features.CameraPrepare(frames=1, height=16, width=16),
    "microphone": features.MicrophonePrepare(samples=2048, mels=16),
}


class Growth(msgspec.Struct, frozen=True):
    """Memory in RAM after the first moments and after all: `growth` is the second over the first, less 1."""

    moments: int
    first_mb: float
    last_mb: float
    most_mb: float
    growth: float


class Process(msgspec.Struct, frozen=True):
    """A process and its memory in RAM: `rss_mb` counts what it shares wholly, `pss_mb` its part of that."""

    name: str
    rss_mb: float
    pss_mb: float


class Begun(msgspec.Struct, frozen=True):
    """An agent from its start to its first score, and the memory of it and its children.

    `unproven_s` is of a first start, when its encoders are yet to be proven in a child (edge.workshop). `rss_mb` counts
    what processes share once for each, `pss_mb` once in all.
    """

    first_score_s: float
    unproven_s: float
    processes: int
    rss_mb: float
    pss_mb: float


class Stub:
    """A session that computes next to nothing: a fixed projection of the first values of the window."""

    def __init__(self) -> None:
        self._axes = np.random.default_rng(1).normal(size=(64, DIM)).astype(np.float32)

    def run(self, _: Any, given: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
        seen = given["window"].reshape(len(given["window"]), -1)[:, :64].astype(np.float32)
        made = (seen - seen.mean()) @ self._axes
        made /= np.linalg.norm(made, axis=1, keepdims=True) + 1e-6
        return [made, made]


def growth(moments: int) -> Growth:
    """Run so many moments through pipeline and outbox, with small samples and stub encoders."""
    with tempfile.TemporaryDirectory(prefix="lineside-bench-") as folder:
        trial = _stubbed(Path(folder))
        stream = Stream(trial, trial.pipeline(trial.commission()))
        outbox = Outbox(trial.base / "outbox.db", "bench", 256_000_000, SystemClock())
        seen = []
        for k in range(SETTLED + moments):
            outbox.put(stream.moment()[1])
            if k % 100 == 99:
                outbox.forget(outbox.epoch, [(1, 2**62)])
            if k >= SETTLED and (k - SETTLED) % max(1, moments // 200) == 0:
                seen.append(rss_mb())
                tell(f"{k - SETTLED} of {moments} moments, {seen[-1]:.1f} MB")
        outbox.close()
        tell("")
        return Growth(moments, seen[0], rss_mb(), max(seen), rss_mb() / seen[0] - 1)


def told(found: Growth) -> str:
    """Growth as a sentence."""
    return (
        f"RSS {found.first_mb:.1f} MB after the first {SETTLED} moments, {found.last_mb:.1f} MB after {found.moments} "
        f"more (at most {found.most_mb:.1f}): {found.growth:+.2%}"
    )


def _stubbed(folder: Path) -> Trial:
    encoders = {modality: _stub(modality, spec) for modality, spec in SPECS.items()}
    cam = SensorSettings(name="cam0", modality="camera", source="simulation", width=64, height=48, rate_hz=2)
    mic = SensorSettings(name="mic0", modality="microphone", source="simulation")
    device = DeviceConfig(device=DeviceSettings(id="bench", site="bench", station="bench"), sensors=[cam, mic])
    return Trial(settings(encoders, device, broker=1), folder, encoders, {})


def _stub(modality: str, spec: features.Prepare) -> Encoder:
    certificate = release.Certificate(stage=1, parent="", embedding_drift={}, similarity_drift={}, gates=[])
    card = release.Card(
        modality=modality,
        version=1,
        space="stub",
        encoder="stub",
        dim=DIM,
        precision="fp32",
        prepare=features.to_json(spec),
        prepare_sha256=features.fingerprint(spec),
        stage="stub",
        golden_inputs=b"",
        golden_outputs=b"",
        tolerance=0.0,
        certificate=certificate,
    )
    return Encoder(card, spec, "stub", Stub())


def begin(config: DeviceConfig | None, files: Sequence[Path]) -> Begun:
    """Start an agent with these encoders on the simulated line, normal running known, and wait for its first score.

    Raises LinesideError when none comes.
    """
    with tempfile.TemporaryDirectory(prefix="lineside-bench-") as folder:
        trial = prepare(files, Path(folder), config, broker=1)
        trial.commission()
        path = trial.base / "device.toml"
        path.write_text(_toml(trial.config))
        shutil.rmtree(trial.base / "state" / "runtimes")
        unproven_s, *_ = _started(path)
        for file in (trial.base / "state").glob("outbox.db*"):
            file.unlink()
        first_score_s, processes, rss_mb, pss_mb = _started(path)
        return Begun(first_score_s, unproven_s, processes, rss_mb, pss_mb)


def _started(path: Path) -> tuple[float, int, float, float]:
    """Seconds from the start of an agent with this device file to its first score; then its processes and memory."""
    before = monotonic()
    command = [sys.executable, "-m", "lineside", "edge", "run", "--config", str(path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as agent:
        try:
            took = first_score(path.parent / "state" / "outbox.db", agent, before)
            found = processes(agent.pid)
            return took, len(found), sum(one.rss_mb for one in found), sum(one.pss_mb for one in found)
        finally:
            agent.terminate()


def begun(found: Begun) -> str:
    """Start and memory as a sentence."""
    return (
        f"agent: first score {found.first_score_s:.1f} s after its start, {found.unproven_s:.1f} s with encoders that "
        f"are new to the device; {found.processes} processes, "
        f"RSS {found.rss_mb:.0f} MB in all (PSS {found.pss_mb:.0f} MB)"
    )


def first_score(outbox: Path, agent: subprocess.Popen[bytes], before: float) -> float:
    """Wait for an agent's first score; seconds since `before` (monotonic). Raises LinesideError when none comes."""
    clock = SystemClock()
    while monotonic() - before < PATIENCE_S and agent.poll() is None:
        clock.sleep(0.02)
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(f"file:{outbox}?mode=ro", uri=True)) as db,
        ):
            if db.execute("SELECT 1 FROM outbox WHERE kind = 'score' LIMIT 1").fetchone():
                return monotonic() - before
    mend = "look at what `lineside edge run` says with the same encoders"
    raise LinesideError("bench", f"the agent gave no score within {PATIENCE_S:g} s", mend)


def processes(pid: int) -> list[Process]:
    """A process and all that it has begun."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return [_process(each) for each in found]


def _process(pid: int) -> Process:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    rows = [line.partition(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    megabytes = {name: int(rest.split()[0]) * 1024 / 1e6 for name, _, rest in rows}
    module = words[words.index(b"-m") + 1] if b"-m" in words else words[0]
    return Process(module.decode(), megabytes["Rss"], megabytes["Pss"])


def _toml(config: DeviceConfig) -> str:
    """The device file of a trial on the simulated line."""
    lines = ["[device]", 'id = "bench"', 'site = "bench"', 'station = "bench"', "[broker]", "port = 1"]
    lines += ["[windows]", f"length_s = {config.windows.length_s}", f"hop_s = {config.windows.hop_s}"]
    for sensor in config.sensors:
        lines += ["[[sensors]]", f'name = "{sensor.name}"', f'modality = "{sensor.modality}"', 'source = "simulation"']
    return "\n".join(lines)
