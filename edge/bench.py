"""What a whole window costs beside the bare inference in it, measured in one interleaved run.

Whole: samples in, cut, checked, prepared, encoded, judged, watched for drift, written to the outbox. Bare:
`session.run` of the same encoders on ready inputs, right after it, with caches as warm as can be: that flatters nobody.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter_ns, process_time_ns
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.config import DeviceConfig, SensorSettings
from edge.encoder import Encoder
from edge.outbox import Outbox
from edge.pipeline import Pipeline
from edge.sink import running
from edge.stages import STAGES
from edge.trial import LEARN_MOMENTS, Trial, prepare
from edge.uplink import Uplink
from lineside import features, wire
from lineside.cli import tell
from lineside.clock import SystemClock
from lineside.messages import Message

QUANTILES = {"p10": 0.1, "p50": 0.5, "p99": 0.99}
T = TypeVar("T")
Floats = NDArray[np.float64]
Spread = dict[str, float]  # milliseconds by QUANTILES


class Measured(msgspec.Struct, frozen=True):
    """One sensor and its encoder: `megabytes` of its file, `bare` milliseconds of one `session.run`."""

    encoder: str
    precision: str
    provider: str
    samples: str
    input: str
    megabytes: float
    bare: Spread


class Bench(msgspec.Struct, frozen=True):
    """What `lineside edge bench` found, by sensor or in milliseconds a moment.

    `ratio` is whole over bare; `publish` goes from the outbox to the acknowledgement of a broker on this machine,
    `latency` from the last sample of a moment to that acknowledgement. `cpu_percent` is of one core, for one moment a
    second, all threads; `cpu_ratio` is that over what bare inference takes. `drift` tells whether drift was watched.
    """

    moments: int
    sensors: dict[str, Measured]
    whole: Spread
    bare: Spread
    ratio: Spread
    stages: dict[str, Spread]
    latency: Spread
    cpu_percent: float
    cpu_ratio: float
    rss_mb: float
    drift: str


def measure(config: DeviceConfig | None, files: Sequence[Path], moments: int) -> Bench:
    """Measure so many moments of a device in a temporary folder, with these encoders and the sensors of `config`."""
    with tempfile.TemporaryDirectory(prefix="lineside-bench-") as folder, running() as port:
        trial = prepare(files, Path(folder), config, port)
        tell("normal running is being learned")
        stream = Stream(trial, trial.pipeline(trial.commission()))
        for k in range(LEARN_MOMENTS + 20):  # from then on drift is watched
            stream.moment()
            tell(f"warming up, {k / LEARN_MOMENTS:.0%}")
        with _Line(trial) as line:
            found = _interleaved(stream, line, moments)
        tell("")
        return _told(trial, stream.pipeline, found)


class Stream:
    """Moments of a trial, one after the other."""

    def __init__(self, trial: Trial, pipeline: Pipeline) -> None:
        self.pipeline, self._samples = pipeline, trial.samples()
        self.last_ns = 0

    def batches(self) -> dict[str, tuple[Encoder, NDArray[np.generic]]]:
        """By sensor its encoder and a ready input for it."""
        encoders = self.pipeline.ensemble.encoders if self.pipeline.ensemble else {}
        return {name: (encoders[kind], _batch(encoders[kind])) for name, kind in self.pipeline.modalities.items()}

    def moment(self) -> tuple[int, list[Message]]:
        """Nanoseconds that the next moment took to the messages that it leads to; of its last run: `last_ns`."""
        spent = 0
        for samples in self._samples:
            self.last_ns, messages = _timed(lambda samples=samples: self.pipeline.push(samples))  # type: ignore[misc]
            spent += self.last_ns
            if messages:
                return spent, messages
        raise AssertionError("samples have no end")


def _batch(encoder: Encoder) -> NDArray[np.generic]:
    chance, shape = np.random.default_rng(1), (1, *features.shape(encoder.spec))
    return chance.integers(0, 255, shape).astype(features.dtype(encoder.spec))


class _Line:
    """Outbox and uplink of a trial, to a sink."""

    def __init__(self, trial: Trial) -> None:
        clock = SystemClock()
        device = trial.config.device
        self.outbox = Outbox(trial.base / device.state_dir / "outbox.db", device.id, 256_000_000, clock)
        self._uplink = Uplink(trial.config, trial.base, self.outbox, clock, lambda _: None)
        self._clock = clock

    def __enter__(self) -> _Line:
        self._uplink.start()
        self._uplink.connected.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._uplink.stop()
        self.outbox.close()

    def publish(self) -> None:
        """Send what waits, and wait until it is acknowledged."""
        self._uplink.wake()
        while self.outbox.messages:
            self._clock.sleep(0.0002)


def _interleaved(stream: Stream, line: _Line, moments: int) -> dict[str, Floats]:
    """Milliseconds by what was measured, (moments,) each."""
    rows: list[dict[str, int]] = []
    stages, batches = stream.pipeline.stages, stream.batches()
    for k in range(moments):
        before = {name: watch.total_ns for name, watch in stages.items()}
        cpu_ns = process_time_ns()
        took, messages = stream.moment()
        stored, _ = _timed(lambda messages=messages: line.outbox.put(messages))  # type: ignore[misc]
        published, _ = _timed(line.publish)
        row = {"cpu": process_time_ns() - cpu_ns}
        row |= {name: watch.total_ns - before[name] for name, watch in stages.items()}
        row |= {"store": stored, "publish": published, "whole": took + stored}
        row["other"] = row["whole"] - sum(row[name] for name in STAGES)
        row["latency"] = stream.last_ns + stored + published
        row["to wire"], _ = _timed(lambda messages=messages: [wire.encode(m) for m in messages])  # type: ignore[misc]
        cpu_ns = process_time_ns()
        for name, (encoder, batch) in batches.items():
            row[f"bare {name}"], _ = _timed(lambda e=encoder, b=batch: e.run(b))  # type: ignore[misc]
        row["bare cpu"] = process_time_ns() - cpu_ns
        rows.append(row)
        tell(f"measuring, {k / moments:.0%}")
    return {name: np.array([row[name] for row in rows]) / 1e6 for name in rows[0]}


def _timed(work: Callable[[], T]) -> tuple[int, T]:
    before = perf_counter_ns()
    done = work()
    return perf_counter_ns() - before, done


def _told(trial: Trial, pipeline: Pipeline, found: Mapping[str, Floats]) -> Bench:
    bare = np.sum([found[f"bare {name}"] for name in pipeline.modalities], axis=0)
    whole, plain = _spread(found["whole"]), _spread(bare)
    sensors = {
        sensor.name: _measured(trial, sensor, _spread(found[f"bare {sensor.name}"])) for sensor in trial.config.sensors
    }
    return Bench(
        moments=len(bare),
        sensors=sensors,
        whole=whole,
        bare=plain,
        ratio={name: whole[name] / plain[name] for name in QUANTILES},
        stages={name: _spread(found[name]) for name in (*STAGES, "other", "to wire", "publish")},
        latency=_spread(found["latency"]),
        cpu_percent=float(found["cpu"].mean()) / 10,
        cpu_ratio=float(found["cpu"].mean() / found["bare cpu"].mean()),
        rss_mb=rss_mb(),
        drift=pipeline.monitor.told if pipeline.monitor else "not watched",
    )


def _measured(trial: Trial, sensor: SensorSettings, bare: Spread) -> Measured:
    encoder, path = trial.encoders[sensor.modality], trial.files[sensor.modality]
    made = next(samples for samples in trial.samples() if samples.sensor == sensor.name)
    return Measured(
        encoder=encoder.card.name,
        precision=encoder.card.precision,
        provider=encoder.provider,
        samples=f"{'x'.join(map(str, made.data.shape[1:])) or 'mono'} at {made.rate_hz:g} Hz",
        input=f"{features.kind(encoder.spec)} {'x'.join(map(str, features.shape(encoder.spec)))}",
        megabytes=path.stat().st_size / 1e6,
        bare=bare,
    )


def _spread(values: Floats) -> Spread:
    return {name: float(np.quantile(values, q)) for name, q in QUANTILES.items()}


def rss_mb() -> float:
    """Memory of this process that is in RAM now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def table(bench: Bench) -> str:
    """The bench as Markdown."""
    lines = ["| sensor | samples | encoder | precision | runtime | input | file | bare p10 |", "|---" * 8 + "|"]
    lines += [
        f"| {name} | {s.samples} | {s.encoder} | {s.precision} | {s.provider.removesuffix('ExecutionProvider')} "
        f"| {s.input} | {s.megabytes:.1f} MB | {s.bare['p10']:.2f} ms |"
        for name, s in bench.sensors.items()
    ]
    lines += ["", f"| ms a moment ({bench.moments} of them) | p10 | p50 | p99 |", "|---" * 4 + "|"]
    rows = {
        "whole": bench.whole,
        "bare": bench.bare,
        **bench.stages,
        "latency, last sample to acknowledged": bench.latency,
    }
    lines += [f"| {name} | {' | '.join(f'{row[q]:.3f}' for q in QUANTILES)} |" for name, row in rows.items()]
    lines += [f"| whole / bare | {' | '.join(f'{bench.ratio[q]:.3f}' for q in QUANTILES)} |", ""]
    lines += [
        f"CPU: {bench.cpu_percent:.2f} % of a core for one moment a second, {bench.cpu_ratio:.2f} times bare inference "
        f"(publishing too); RSS of the bench {bench.rss_mb:.0f} MB; {bench.drift}"
    ]
    return "\n".join(lines)
