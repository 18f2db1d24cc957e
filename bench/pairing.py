"""How well windows of two sensors pair, whose clocks start apart and drift apart.

`python -m bench.pairing`: a camera and a microphone of one station. The camera's clock runs 100 ppm fast and its stream
begins 200 ms late; the microphone's runs 100 ppm slow; both arrive late by some milliseconds, now and then by up to
150. The error of a moment is how far the mean capture times of its two windows, as they were really taken, lie from
where they were said to be, against each other. Beside it the same without any correction: stamps by the sources' own
clocks, which agree at the start.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge.sensors.stamps import Stamps
from edge.sensors.timeline import Counted
from lineside.clock import NS
from lineside.windows import Cutter, Moments, Samples

LATE_START_S, PPM, FRAMES_HZ, RATE_HZ = 0.2, 100e-6, 10.0, 1_000.0
START_S = 1_700_000_000.0
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """Errors of moments, milliseconds; `skew_p99_ms` is what scores say of themselves."""

    moments: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    skew_p99_ms: float
    uncorrected_p99_ms: float


def measure(seed: int, seconds: float = 3600.0) -> Found:
    """Both sensors for `seconds`; chance from `seed`."""
    rng = np.random.default_rng(seed)
    frames = START_S + LATE_START_S + np.arange(seconds * FRAMES_HZ) / FRAMES_HZ * (1 - PPM)
    blocks = START_S + np.arange(seconds * 10) * 0.1 * (1 + PPM)
    streams = _camera(frames, rng), _microphone(blocks, rng)
    join = Moments(("cam0", "mic0"), patience_ns=NS)
    cutters = {"cam0": Cutter(NS, NS // 2), "mic0": Cutter(NS, NS // 2)}
    errors, skews = [], []
    for _, samples in sorted((pair for stream in streams for pair in stream), key=lambda pair: pair[0]):
        for window in cutters[samples.sensor].push(samples):
            for moment in join.push(window):
                if len(moment.windows) == 2:
                    cam, mic = (moment.windows[name] for name in ("cam0", "mic0"))
                    # A sample carries by how much its stamp is wrong (milliseconds), so a window has the mean of it.
                    errors.append(float(cam.values.mean()) - float(mic.values.mean()))
                    skews.append(moment.skew_ns / 1e6)
    error = np.abs(errors)
    apart = LATE_START_S + 2 * PPM * np.linspace(0, seconds, 1000)
    return Found(
        len(error),
        *(float(np.quantile(error, q)) for q in (0.5, 0.99, 1.0)),
        float(np.quantile(skews, 0.99)),
        float(np.quantile(1e3 * apart, 0.99)),
    )


def _arrivals(true: Floats, rng: np.random.Generator) -> Floats:
    """When samples of these times come; none overtakes the one before it."""
    late = rng.exponential(0.006, len(true)) + (rng.random(len(true)) < 0.02) * rng.uniform(0.02, 0.15, len(true))
    return np.maximum.accumulate(true + late)


def _camera(true: Floats, rng: np.random.Generator) -> list[tuple[float, Samples]]:
    stamps, out = Stamps(driver=False), []
    for k, (at, came) in enumerate(zip(true, _arrivals(true, rng), strict=True)):
        stamp_ns = stamps.place(round(k / FRAMES_HZ * NS) + 1, round(came * NS), 0)
        wrong = np.full((1, 1, 1, 1), (stamp_ns / NS - at) * 1e3, np.float64)
        out.append((came, Samples("cam0", "camera", stamp_ns, FRAMES_HZ, wrong, np.array([stamp_ns], np.int64))))
    return out


def _microphone(true: Floats, rng: np.random.Generator) -> list[tuple[float, Samples]]:
    line, out = Counted(RATE_HZ), []
    empty = Samples("mic0", "microphone", 0, RATE_HZ, np.zeros(100))
    for at, came in zip(true, _arrivals(true, rng), strict=True):
        start_ns, jumped = line.place(round(came * NS), 100)
        wrong = np.full(100, (start_ns / NS - at) * 1e3)
        flags = frozenset({"gap"} if jumped else ())
        out.append((came, replace(empty, start_ns=start_ns, data=wrong, flags=flags)))
    return out


def main() -> None:
    """Print one row a seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3600.0)
    asked = parser.parse_args()
    print("| seed | moments | error p50 (ms) | p99 | max | skew told, p99 | without correction, p99 |")
    print("|---|---|---|---|---|---|---|")
    for seed in range(1, asked.seeds + 1):
        found = measure(seed, asked.seconds)
        cells = (found.p50_ms, found.p99_ms, found.max_ms, found.skew_p99_ms, found.uncorrected_p99_ms)
        print(f"| {seed} | {found.moments} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
