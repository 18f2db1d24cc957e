"""What a running agent holds in memory, its capture processes among it: a 720p camera over HTTP, sound through ALSA.

`python -m bench.memory big/camera-1.int8.onnx big/microphone-1.int8.onnx` prints one row a process: RSS counts what
processes share once for each, PSS divides it among them. The agent's settings are the ordinary ones; `--no-evidence`
keeps nothing around alarms. It knows normal running and is looked at `--seconds` after its first score. The pictures
are full of noise, as in bench.evidence: their JPEGs fill the ring of evidence. `--json` prints one line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.evidence import pictures
from bench.real_sensors import SOUND_HZ, CameraServer, fifo_microphone, jpegs
from edge.endurance import first_score, processes
from edge.trial import Trial, prepare

PICTURES = 17
BLOCK = SOUND_HZ // 10  # what a microphone's process reads at once
DEVICE = """
[device]
id = "bench"
site = "bench"
station = "bench"
[broker]
port = 1
[[sensors]]
name = "cam0"
modality = "camera"
source = "camera"
device = "http://127.0.0.1:{port}/"
[[sensors]]
name = "mic0"
modality = "microphone"
source = "microphone"
device = "filemic"
"""
NO_EVIDENCE = """
[evidence]
before_s = 0
after_s = 0
"""


@contextlib.contextmanager
def running(trial: Trial, more: str) -> Iterator[subprocess.Popen[bytes]]:
    """An agent of this trial that has given its first score; its device file has `more` at the end."""
    frames = jpegs([picture[0] for picture in pictures(PICTURES)])
    sound = np.random.default_rng(1).normal(0, 2_000, 60 * SOUND_HZ).astype(np.int16)
    environment = os.environ | fifo_microphone(trial.base, sound, BLOCK)
    camera, file = CameraServer(frames), trial.base / "device.toml"
    file.write_text(DEVICE.format(port=camera.port) + more)
    command = [sys.executable, "-m", "lineside", "edge", "run", "--config", str(file)]
    begun = time.monotonic()
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as agent:
        try:
            first_score(trial.base / "state" / "outbox.db", agent, begun)
            yield agent
        finally:
            agent.terminate()
            camera.close()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs=2, type=Path, help="one of a camera, one of a microphone")
    parser.add_argument("--no-evidence", action="store_true")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lineside-bench-") as folder:
        trial = prepare(asked.encoders, Path(folder), broker=1)
        trial.commission()
        with running(trial, NO_EVIDENCE if asked.no_evidence else "") as agent:
            time.sleep(asked.seconds)
            found = processes(agent.pid)
    rows = [{"process": one.name, "rss_mb": one.rss_mb, "pss_mb": one.pss_mb} for one in found]
    total = {"process": "all", **{key: sum(float(row[key]) for row in rows) for key in ("rss_mb", "pss_mb")}}
    if asked.json:
        print(json.dumps([*rows, total]))
        return
    print("| process | RSS MB | PSS MB |\n|---|---:|---:|")
    for row in [*rows, total]:
        print(f"| {row['process']} | {row['rss_mb']:.0f} | {row['pss_mb']:.0f} |")


if __name__ == "__main__":
    main()
