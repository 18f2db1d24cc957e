"""Who is blamed for what: a confusion matrix of edge.triage on the simulated line, by the device's own code.

`python -m bench.triage` trains both encoders on 120 s of the line, exports them, commissions a device on 240 s of other
seeds, and runs edge.evaluation.line over `--seeds` further runs of the line. `--encoders DIR` takes what such a run
left there with `--keep DIR`: the encoders in bundles/ and commissioning.mcap.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from edge.encoder import Encoder
from edge.ensemble import Ensemble
from edge.evaluation.line import NORMAL_S, RUN_S, SENSORS, START_NS, config, confusion
from edge.evaluation.report import markdown, plain
from edge.replay import commission, simulated
from export import bundle
from lineside.clock import NS, SystemClock
from lineside.recording import About, Recorder, Recording
from trainer.plan import Plan, RecordingPart
from trainer.stage import run_stage

TRAIN_S, COMMISSION_S, EPOCHS, FIRST_SEED = 120, 240, 40, 100
BUNDLES, COMMISSIONING = "bundles", "commissioning.mcap"


def recorded(path: Path, seconds: int, seed: int) -> Path:
    with Recorder(path, About(station="press", sensors=SENSORS)) as recorder:
        for samples in simulated(config(seed), path.parent, START_NS, seconds):
            recorder.write(samples)
    return path


def make(folder: Path) -> None:
    """Train and export encoders, and record normal running to commission on."""
    normal = recorded(folder / "normal.mcap", TRAIN_S, seed=1)
    plan = Plan(out=str(folder / "stage"), recordings=[RecordingPart(path=str(normal))], epochs=EPOCHS)
    stage = run_stage(plan, folder, SystemClock())
    assert stage is not None
    bundle.build(folder / "stage", folder / BUNDLES, precisions=("fp32",))
    recorded(folder / COMMISSIONING, COMMISSION_S, seed=3)


def commissioned(folder: Path) -> Ensemble:
    """A device of the encoders that lie there, which knows what is normal."""
    found = [Encoder.load(path) for path in sorted((folder / BUNDLES).glob("*.onnx"))]
    encoders = {encoder.card.modality: encoder for encoder in found}
    return commission(config(3), Ensemble(encoders), Recording(folder / COMMISSIONING)).ensemble(encoders, config(3))


@contextmanager
def made(asked: argparse.Namespace) -> Iterator[Path]:
    """The folder of the encoders: as given, or filled anew."""
    if asked.encoders:
        yield asked.encoders
        return
    with tempfile.TemporaryDirectory() as passing:
        folder = asked.keep or Path(passing)
        folder.mkdir(parents=True, exist_ok=True)
        make(folder)
        yield folder


def main() -> None:
    """Print the matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument(
        "--encoders", type=Path, help="folder of encoders and a commissioning recording; none is trained"
    )
    parser.add_argument("--keep", type=Path, help="leave what was trained in this folder")
    parser.add_argument("--run-s", type=float, default=RUN_S, help="longest time of a fault in seconds")
    parser.add_argument("--normal-s", type=float, default=NORMAL_S, help="well running of each seed in seconds")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + asked.seeds)
    with made(asked) as folder:
        device = commissioned(folder)
        found = [confusion(device, seeds, run_s=asked.run_s, normal_s=asked.normal_s, workers=asked.workers)]
    if asked.json:
        print(json.dumps({"seeds": asked.seeds, "sections": plain(found)}))
        return
    day = f"{datetime.fromtimestamp(SystemClock().now_ns() / NS, timezone.utc):%Y-%m-%d}"
    print(markdown(found, "Sensor or process", f"python -m bench.triage --seeds {asked.seeds}", day, {}))


if __name__ == "__main__":
    main()
