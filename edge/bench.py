"""What a whole window costs beside the bare inference in it, measured in one interleaved run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from edge.changeover import Changeover
from edge.config import DeviceConfig
from edge.pipeline import Pipeline
from edge.replay import simulated
from edge.slots import Slots
from lineside import features, wire
from lineside.clock import SimulatedClock

START_NS = 1_700_000_000_000_000_000


def measure(config: DeviceConfig, base: Path, seconds: float) -> dict[str, float]:
    """Milliseconds per moment (lower decile): whole pipeline from raw samples to bytes, bare inference, their ratio.

    The device must have encoders and normal running (run it once). Raises LinesideError otherwise.
    """
    pipeline = Pipeline(config)
    Changeover(config, base, pipeline, Slots(base / config.device.state_dir, SimulatedClock()), None).begin()
    assert pipeline.ensemble is not None
    encoders = pipeline.ensemble.encoders
    inputs = {
        m: np.zeros((1, *features.shape(encoder.spec)), features.dtype(encoder.spec)) for m, encoder in encoders.items()
    }
    whole, bare, spent = [], [], 0
    for samples in simulated(config, base, START_NS, seconds):
        took, messages = _timed(lambda samples=samples: [wire.encode(m) for m in pipeline.push(samples)])  # type: ignore[misc]
        spent += took
        if messages:
            whole.append(spent)
            spent = 0
            for sensor in config.sensors:
                encoder = encoders[sensor.modality]
                bare.append(_timed(lambda e=encoder, s=sensor: e.encode(inputs[s.modality]))[0])  # type: ignore[misc]
    per_moment = np.array(bare).reshape(-1, len(config.sensors)).sum(axis=1)
    full_ms, bare_ms = (float(np.quantile(v, 0.1)) / 1e6 for v in (np.array(whole), per_moment))
    return {"moments": len(whole), "whole_ms": full_ms, "bare_ms": bare_ms, "ratio": full_ms / bare_ms}


def _timed(work: Callable[[], object]) -> tuple[int, object]:
    before = perf_counter_ns()
    done = work()
    return perf_counter_ns() - before, done
