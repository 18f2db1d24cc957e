"""Encoders for `lineside edge replay --evaluate --all`, of the simulated line and of digits written and spoken.

`python -m bench.encoders --out var/encoders [--data ../shared/data/dev]` trains on 120 s of the line and on the
training split of av_digits, whose labels say which digit a picture and a sound are, and exports both. Beside the
encoders of the line lies a recording that its device is commissioned on, of another run of the line.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edge.evaluation.line import SENSORS, START_NS, config
from edge.importers import import_recording
from edge.replay import simulated
from export import bundle
from lineside.clock import SystemClock
from lineside.recording import About, Recorder
from trainer.plan import DefectSettings, LossSettings, Plan, RecordingPart
from trainer.stage import run_stage

TRAIN_S, COMMISSION_S, LINE_EPOCHS, DIGIT_EPOCHS, DIGITS = 120, 240, 40, 8, 4500
STAGE = "stage"  # paths of a plan start from its own folder


def main() -> None:
    """Train and export what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("var/encoders"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data/dev"))
    asked = parser.parse_args()
    line(asked.out / "line")
    if (asked.data / "av_digits").is_dir():
        digits(asked.data / "av_digits", asked.out / "digits")


def line(out: Path) -> None:
    """Encoders of the simulated line, and `commissioning.mcap`."""
    _simulated(out / "commissioning.mcap", COMMISSION_S, seed=3)
    _simulated(out / "normal.mcap", TRAIN_S, seed=1)
    plan = Plan(out=STAGE, recordings=[RecordingPart(path="normal.mcap")], epochs=LINE_EPOCHS)
    _export(plan, out)


def digits(source: Path, out: Path) -> None:
    """Encoders of written and spoken digits. Every item is an event of its own: no defects are made of them."""
    out.mkdir(parents=True, exist_ok=True)
    import_recording(source, out / "train.mcap", split="train", limit=DIGITS)
    plan = Plan(
        out=STAGE,
        recordings=[RecordingPart(path="train.mcap")],
        epochs=DIGIT_EPOCHS,
        losses=LossSettings(labels=True),
        defects=DefectSettings(own=0.0, together=0.0),
    )
    _export(plan, out)


def _export(plan: Plan, out: Path) -> None:
    if run_stage(plan, out, SystemClock()) is None:
        raise SystemExit(f"{out}: a gate refused the stage")
    bundle.build(out / STAGE, out, precisions=("fp32",))


def _simulated(path: Path, seconds: int, seed: int) -> None:
    with Recorder(path, About(station="press", sensors=SENSORS)) as recorder:
        for samples in simulated(config(seed), path.parent, START_NS, seconds):
            recorder.write(samples)


if __name__ == "__main__":
    main()
