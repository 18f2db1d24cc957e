"""What the drift detector promises, measured: false alarms on stationary laws, delay after a shift, cost.

`python -m bench.drift` prints three tables. False alarms: streams of each law, with one window a second and a budget of
one alarm in 30 days, each group of streams with a reference of its own (a day); every stream is a whole budget long.
Delay: windows from a shift to the alarm, beside the Shiryaev-Roberts test that knows the shift and its law. Cost: of
a channel, of an embedding, of all that a moment costs, and the memory it takes. `--windows` says how many windows a law
gets, `--spent` how many the cost is taken over; `--json` prints one line.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edge.monitor import Monitor, Watch
from lineside.clock import NS, SystemClock
from lineside.drift import Detector
from lineside.fusion import Encoded, Judgement
from lineside.projections import CHANNELS, Projections, Space
from lineside.reference import BET_WEIGHTS, LONGEST_MEMORY, Reference, log_bets

Floats = NDArray[np.float64]
DAY = 86_400
BUDGET = 30 * DAY
GROUPS, BLOCK = 4, 4096
STATION, WIDTH = 29, 128  # channels of a camera and a microphone; length of an embedding
SENSORS, PAIR = ("cam0", "mic0"), "cam0+mic0"


@dataclass(frozen=True)
class Stream:
    """Windows of several streams of one law: values (steps, streams), strata (steps,), times from a whole day on."""

    draw: Callable[[np.random.Generator, int, int, Floats], tuple[Floats, Floats]]


def independent(law: Callable[[np.random.Generator, tuple[int, int]], Floats]) -> Stream:
    return Stream(lambda rng, steps, streams, past: (law(rng, (steps, streams)), past))


def autoregressive(memory: float) -> Stream:
    """AR(1) of variance 1; `past` is the last value of each stream."""

    def draw(rng: np.random.Generator, steps: int, streams: int, past: Floats) -> tuple[Floats, Floats]:
        noise = rng.normal(size=(steps, streams)) * math.sqrt(1 - memory**2)
        for step in range(steps):
            past = noise[step] = memory * past + noise[step]
        return noise, past

    return Stream(draw)


LAWS: dict[str, Stream] = {
    "normal": independent(lambda rng, size: rng.normal(size=size)),
    "t(3)": independent(lambda rng, size: rng.standard_t(3, size=size)),
    "lognormal": independent(lambda rng, size: rng.lognormal(size=size)),
    "beta(2, 5)": independent(lambda rng, size: rng.beta(2, 5, size=size)),
    "AR 0.5": autoregressive(0.5),
    "AR 0.9": autoregressive(0.9),
    "day, night, products": autoregressive(0.5),
}
CYCLE = "day, night, products"


def product(second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Three products, changed every 47 minutes."""
    return np.asarray(second // 2820 % 3)


def rhythm(second: NDArray[np.int64]) -> Floats:
    """Level of the day and of the product, in standard deviations of the noise."""
    return np.asarray(1.5 * np.sin(2 * np.pi * second / DAY + 0.7) + np.array([0.0, 2.0, -1.0])[product(second)])


def false_alarms(law: str, windows: float, seed: int) -> dict[str, float]:
    """Alarms per 30 days of one law, over about `windows` windows."""
    streams = max(1, round(windows / BUDGET / GROUPS))
    alarms = sum(_alarms(law, streams, np.random.default_rng([seed, group])) for group in range(GROUPS))
    watched = GROUPS * streams * BUDGET
    return {"alarms": alarms, "windows": float(watched), "per_30_days": alarms * BUDGET / watched}


def _alarms(law: str, streams: int, rng: np.random.Generator) -> int:
    past = np.zeros(streams + 1)
    learned, past = _values(law, rng, np.arange(DAY), streams + 1, past)
    seconds = np.arange(DAY, dtype=np.int64)
    strata = product(seconds) if law == CYCLE else np.zeros(DAY, np.int64)
    reference = Reference.fit(["x"], learned[:, :1], seconds * NS, NS, strata)
    sums, lags, alarms = np.zeros((streams, len(BET_WEIGHTS))), learned[-LONGEST_MEMORY:, 1:], 0
    past = past[1:]
    for first in range(DAY, DAY + BUDGET, BLOCK):
        second = np.arange(first, min(first + BLOCK, DAY + BUDGET))
        values, past = _values(law, rng, second, streams, past)
        gain = np.exp(_gains(reference, law, np.concatenate([lags, values]), first, len(second)))
        lags = values[-LONGEST_MEMORY:]
        for step in gain:  # (streams, bets)
            sums += 1
            sums *= step
            over = sums @ BET_WEIGHTS >= BUDGET
            if over.any():
                alarms += int(over.sum())
                sums[over] = 0
    return alarms


def _values(
    law: str, rng: np.random.Generator, second: NDArray[np.int64], streams: int, past: Floats
) -> tuple[Floats, Floats]:
    values, past = LAWS[law].draw(rng, len(second), streams, past)
    return (values + rhythm(second)[:, None] if law == CYCLE else values), past


def _gains(reference: Reference, law: str, values: Floats, first: int, count: int) -> Floats:
    """ln of every bet (count, streams, bets) of the last `count` rows of `values`; those before are their past."""
    second = np.arange(first - (len(values) - count), first + count)
    strata = product(second) if law == CYCLE else np.zeros(len(second), np.int64)
    deviation = reference.deviation(values[..., None], second[:, None] * NS, strata[:, None])[..., 0]
    start = len(values) - count
    memory = reference.memory[0]
    residual = deviation[start:] - sum(
        memory[k] * deviation[start - k - 1 : len(values) - k - 1] for k in range(LONGEST_MEMORY)
    )
    z = np.interp(residual, reference.knots[0], reference.levels[0])
    return log_bets(z) - reference.log_mean[strata[start:], 0][:, None]


def delays(shift: float, streams: int, seed: int) -> dict[str, float]:
    """Mean windows from a shift of normal windows to the alarm, ours and the oracle's, on the same streams.

    Both have run on normal windows before; alarms from before the shift are not counted.
    """
    rng = np.random.default_rng([seed, 99])
    seconds = np.arange(DAY, dtype=np.int64)
    reference = Reference.fit(["x"], rng.normal(size=(DAY, 1)), seconds * NS, NS)
    warm, most = 5_000, 20_000
    sums, known = np.zeros((streams, len(BET_WEIGHTS))), np.zeros(streams)
    found: list[list[int]] = [[-1] * streams, [-1] * streams]
    for step in range(warm + most):
        x = rng.normal(size=streams) + (shift if step >= warm else 0.0)
        z = np.interp(x, reference.knots[0], reference.levels[0])
        sums = (sums + 1) * np.exp(log_bets(z) - reference.log_mean[0, 0])
        known = (known + 1) * np.exp(shift * x - shift**2 / 2)
        for place, value in enumerate((sums @ BET_WEIGHTS, known)):
            for stream in np.flatnonzero(value >= BUDGET):
                if step >= warm and found[place][stream] < 0:
                    found[place][stream] = step - warm + 1
        if min(min(row) for row in found) >= 0:
            break
    ours, oracle = (np.array(row, float) for row in found)
    return {
        "mean": float(ours.mean()),
        "p95": float(np.quantile(ours, 0.95)),
        "oracle": float(oracle.mean()),
        "ratio": float(ours.mean() / oracle.mean()),
        "missed": float((ours < 0).sum()),
    }


def costs(windows: int) -> dict[str, float]:
    """Median microseconds, and bytes of a monitor's state after a tenth of `windows` and after all of them.

    An embedding's cost is that of its projections and of its channels' part of the detector of a station with a camera
    and a microphone; a moment's is all that edge.monitor does with its windows, for each of the two.
    """
    channel = detector_us(STATION) / STATION
    monitor, moments = station()
    moment, early = moments_us(monitor, moments, windows // 10), state_bytes(monitor)
    moment, late = moments_us(monitor, moments, windows), state_bytes(monitor)
    return {
        "scalar channel alone, us": detector_us(1),
        f"scalar channel among {STATION}, us": channel,
        f"{WIDTH}-d embedding, us": projections_us() + channel * len(CHANNELS),
        "window and modality, us": moment / len(SENSORS),
        f"state after {windows // 10} windows, bytes": early,
        f"state after {windows} windows, bytes": late,
    }


def median_us(calls: Iterable[Callable[[], object]]) -> float:
    """Median microseconds of calls."""
    clock, times = SystemClock(), []
    for call in calls:
        began = clock.now_ns()
        call()
        times.append((clock.now_ns() - began) / 1e3)
    return statistics.median(times)


def detector_us(channels: int, rounds: int = 5_000) -> float:
    """Of one window of a detector."""
    rng = np.random.default_rng(0)
    seconds = np.arange(2_000, dtype=np.int64)
    names = [f"c{k}" for k in range(channels)]
    detector = Detector(Reference.fit(names, rng.normal(size=(2_000, channels)), seconds * NS, NS), BUDGET)
    rows = rng.normal(size=(rounds, channels))
    return median_us(partial(detector.hear, row, step * NS) for step, row in enumerate(rows))


def projections_us(rounds: int = 5_000) -> float:
    """Of one embedding."""
    rows = embeddings(rounds, 0)
    projections = Projections(Space.fit(rows[:1_000]))
    return median_us(partial(projections.hear, row) for row in rows)


def station(learned: int = 2_000) -> tuple[Monitor, list[tuple[Judgement, dict[str, Encoded]]]]:
    """A monitor of a camera and a microphone that has learned, and as many moments for it."""
    seen = {sensor: embeddings(learned, k) for k, sensor in enumerate(SENSORS)}
    evidence = np.random.default_rng(9).exponential(size=(learned, len(SENSORS)))
    moments = []
    for k, row in enumerate(evidence.tolist()):
        encoded = {sensor: Encoded(rows[k], rows[k]) for sensor, rows in seen.items()}
        cosine = float(np.dot(*(one.embedding for one in encoded.values())))
        moments.append(
            (Judgement(sum(row), 0.5, dict(zip(SENSORS, row, strict=True)), {}, {PAIR: cosine}, {}, {}), encoded)
        )
    spaces = {sensor: Space.fit(rows[:1_000]) for sensor, rows in seen.items()}
    monitor = Monitor(Watch(spaces, (PAIR,), NS, learned / 3_600, BUDGET / DAY))
    moments_us(monitor, moments, learned)
    return monitor, moments


def moments_us(monitor: Monitor, moments: list[tuple[Judgement, dict[str, Encoded]]], windows: int) -> float:
    """Of one moment."""
    return median_us(partial(monitor.hear, *moments[k % len(moments)], k * NS) for k in range(windows))


def state_bytes(monitor: Monitor) -> int:
    return sum(array.nbytes for array in monitor.state().values())


def embeddings(count: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors without a direction of their own."""
    points = np.random.default_rng(seed).normal(size=(count, WIDTH))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=float, default=1e8, help="windows of each law")
    parser.add_argument("--spent", type=int, default=100_000, help="windows that the cost is taken over")
    parser.add_argument("--laws", default="", help="some of the laws, with `;` between")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    laws = [name for name in asked.laws.split(";") if name] or list(LAWS)
    alarms = {}
    for law in laws:
        alarms[law] = false_alarms(law, asked.windows, asked.seed)
        print(f"{law}: {alarms[law]}", file=sys.stderr)
    late = {f"{shift} sigma": delays(shift, 400, asked.seed) for shift in (0.5, 1.0)}
    spent = {name: round(value, 1) for name, value in costs(asked.spent).items()}
    if asked.json:
        print(json.dumps({"seed": asked.seed, "false_alarms": alarms, "delay": late, "cost": spent}))
        return
    print("| law | windows | alarms | per 30 days |\n|---|---|---|---|")
    for law, row in alarms.items():
        print(f"| {law} | {row['windows']:.3g} | {row['alarms']} | {row['per_30_days']:.2f} |")
    print("\n| shift | mean delay, windows | 95 % | oracle | ratio | missed |\n|---|---|---|---|---|---|")
    for name, row in late.items():
        told = " | ".join(f"{row[key]:.1f}" for key in ("mean", "p95", "oracle"))
        print(f"| {name} | {told} | {row['ratio']:.2f} | {row['missed']:.0f} of 400 |")
    print("\n| cost of a | |\n|---|---|")
    for name, value in spent.items():
        print(f"| {name} | {value:g} |")


if __name__ == "__main__":
    main()
