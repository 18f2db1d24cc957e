"""What evidence costs a device: a 720p camera at 10 Hz and a microphone at 16 kHz, in real time.

`python -m bench.evidence` prints one table: with nothing kept, with seconds around alarms, with everything kept too;
share of a core, memory that came to be in use, how long judging waits to hand over a run, and by how much the work of
the judging thread (a millisecond of Python after each run) is held up. An alarm is raised halfway. `--seconds` says how
long each row takes; `--json` prints one line.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.config import DeviceConfig, DeviceSettings, EvidenceSettings, SensorSettings
from edge.evidence import Evidence
from edge.inventory import inventory
from lineside.clock import NS, SystemClock
from lineside.messages import Alarm
from lineside.windows import Samples

SENSORS = [
    SensorSettings(name="cam0", modality="camera", source="simulation"),
    SensorSettings(name="mic0", modality="microphone", source="simulation"),
]
ROWS = {
    "nothing": EvidenceSettings(before_s=0.0, after_s=0.0),
    "around alarms": EvidenceSettings(),
    "everything too": EvidenceSettings(record_all=True),
}


def pictures(count: int) -> list[NDArray[np.uint8]]:
    """Pictures (1, 720, 1280, 3) with shapes, smooth light and the noise of a sensor."""
    rng, made = np.random.default_rng(1), []
    light = cv2.resize(rng.integers(60, 200, (9, 16, 3), np.uint8), (1280, 720), interpolation=cv2.INTER_CUBIC)
    for _ in range(60):
        (x, y), colour = rng.integers(0, [1200, 650], 2).tolist(), rng.integers(0, 256, 3).tolist()
        cv2.rectangle(light, (x, y), (x + 80, y + 50), colour, 2)
    for _ in range(count):
        noisy = light + rng.normal(0, 3, light.shape)
        made.append(np.clip(noisy, 0, 255).astype(np.uint8)[None])
    return made


def stream(seconds: float, start_ns: int, frames: list[NDArray[np.uint8]]) -> Iterator[Samples]:
    """Runs of both sensors, a tenth of a second each; every picture is memory of its own, as from a camera."""
    rng = np.random.default_rng(2)
    hum = 3_000 * np.sin(2 * np.pi * 110 * np.arange(1_600) / 16_000)
    for k in range(round(seconds * 10)):
        at_ns = start_ns + k * NS // 10
        picture = frames[k % len(frames)].copy()
        yield Samples("cam0", "camera", at_ns, 10.0, picture, np.array([at_ns], np.int64))
        yield Samples("mic0", "microphone", at_ns, 16_000.0, (hum + rng.normal(0, 300, 1_600)).astype(np.int16))


def measure(settings: EvidenceSettings, seconds: float, frames: list[NDArray[np.uint8]]) -> dict[str, float]:
    """One row of the table."""
    device = DeviceSettings(id="edge-1", site="line1", station="press")
    config, clock = DeviceConfig(device=device, sensors=SENSORS, evidence=settings), SystemClock()
    waits, works = [], []
    with tempfile.TemporaryDirectory() as folder:
        evidence = Evidence(config, Path(folder), clock)
        memory, cpu_s, begun = _memory_mb(), _cpu_s(), time.perf_counter()
        evidence.start()
        most = memory
        for k, samples in enumerate(stream(seconds, clock.now_ns(), frames)):
            time.sleep(max(0.0, begun + k / 20 - time.perf_counter()))
            before = time.perf_counter()
            evidence.take(samples)
            if k == round(seconds * 10):
                evidence.hear([_alarm(samples.end_ns)])
            waits.append(time.perf_counter() - before)
            works.append(_work())
            most = max(most, _memory_mb())
        cpu_s, wall_s = _cpu_s() - cpu_s, time.perf_counter() - begun
        evidence.stop()
        disk = sum(kept.mb for kept in inventory(Path(folder)))
        return {
            "core_percent": 100 * cpu_s / wall_s,
            "memory_mb": most - memory,
            "ring_mb": evidence._archive._ring.bytes / 1e6,
            "hand_over_us_p50": 1e6 * float(np.median(waits)),
            "hand_over_us_p99": 1e6 * float(np.quantile(waits, 0.99)),
            "work_ms_p50": 1e3 * float(np.median(works)),
            "work_ms_p99": 1e3 * float(np.quantile(works, 0.99)),
            "disk_mb": disk,
            "dropped": evidence.dropped,
        }


def _work() -> float:
    """Seconds that a fixed piece of Python takes, alone about a millisecond."""
    begun, total = time.perf_counter(), 0
    for k in range(12_000):
        total += k * k
    return time.perf_counter() - begun


def _alarm(at_ns: int) -> Alarm:
    told = {"kind": "anomaly", "state": "raised", "subject": "press", "top_sensor": "cam0", "top_modality": "camera"}
    measured = {"p_value": 1e-4, "evidence": 9.0, "contributions": {}, "versions": {}, "limits": {}}
    place = {"device": "edge-1", "station": "press", "key": "k", "onset_ns": at_ns, "time_ns": at_ns, "text": "unlike"}
    return Alarm(**told, **measured, **place)  # type: ignore[arg-type]


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _memory_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    frames = pictures(5)
    rows = {name: measure(settings, asked.seconds, frames) for name, settings in ROWS.items()}
    if asked.json:
        print(json.dumps({"seconds": asked.seconds, "rows": rows}))
        return
    print("| kept | " + " | ".join(next(iter(rows.values()))) + " |")
    print("|---" * (1 + len(next(iter(rows.values())))) + "|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.4g}" for value in row.values()) + " |")


if __name__ == "__main__":
    main()
