"""A line that can be learned from in seconds: a bright bar in the picture stands where the pitch of the sound says."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from lineside import config
from lineside.clock import NS, SystemClock
from lineside.recording import About, Label, Recorder
from lineside.windows import Samples
from trainer.plan import DefectSettings, Plan
from trainer.stage import run_stage

START_NS = 1_700_000_000 * NS
RATE_HZ, SIZE = 4, 32
SMALL = """
[[prepare]]
type = "camera/1"
frames = 1
height = 32
width = 32
"""


def record(path: Path, seconds: int, seed: int = 0, *, tint=0.0, black=(), deaf=(), silent=(), labelled=()) -> Path:
    """Record the scene; the seconds in `black`, `deaf` (no sound at all) and `silent` (zeros) have a fault.

    Those in `labelled` are well but labelled as a fault.
    """
    rng = np.random.default_rng(seed)
    about = About(station="s1", source="pitch", sensors={"cam0": "camera", "mic0": "microphone"}, hop_s=0.5)
    with Recorder(path, about) as recorder:
        for second in range(seconds):
            state = rng.uniform()
            now = START_NS + second * NS
            if second in labelled:
                recorder.label(Label(now, now + NS, "crash", fault=True))
            stamps = now + np.arange(RATE_HZ) * (NS // RATE_HZ)
            frames = np.zeros((RATE_HZ, SIZE, SIZE, 3), np.uint8) if second in black else picture(state, tint, rng)
            recorder.write(Samples("cam0", "camera", now, float(RATE_HZ), frames, stamps))
            if second not in deaf:
                sound = tone(state, rng) * (second not in silent)
                recorder.write(Samples("mic0", "microphone", now, 16_000.0, sound.astype(np.int16)))
    return path


def picture(state: float, tint: float, rng: np.random.Generator) -> np.ndarray:
    frames = rng.normal(60, 4, (RATE_HZ, SIZE, SIZE, 3))
    left = round((0.1 + 0.7 * state) * SIZE)
    frames[:, :, left : left + 4] += 120
    frames[..., 2] += 60 * tint
    return np.clip(frames, 0, 255).astype(np.uint8)


def tone(state: float, rng: np.random.Generator) -> np.ndarray:
    t = np.arange(16_000) / 16_000
    return 4000 * np.sin(2 * np.pi * (300 + 3000 * state) * t) + rng.normal(0, 200, 16_000)


def plan(out: str, recording: str, **changes) -> Plan:
    """A plan that trains in a few seconds."""
    small = config.loads(f'out = "{out}"\n[[recordings]]\npath = "{recording}"\n{SMALL}', Plan)
    return msgspec.structs.replace(
        small, **{"epochs": 8, "dim": 32, "learning_rate": 4e-3, "defects": DefectSettings(1.0, 0.6), **changes}
    )


NEXT = "epochs = 4\ndim = 32\nlearning_rate = 1e-3\n\n[defects]\nown = 1.0\ntogether = 0.6\n"  # a plan of nights
NIGHT = """
plan = "stage.toml"
recordings = ["{recordings}"]
settled_min = 0
plant = "{plant}"
release = "publish"
precision = "fp32"

[minutes]
camera = 1.0
"""


def before_a_night(folder: Path, recordings: Path, stages: Path) -> None:
    """The scene's first stage as number 1 of `stages`, two new recordings of which one is damaged, and a plan."""
    record(folder / "first.mcap", 120, seed=1)
    assert run_stage(plan(str(stages / "1"), "first.mcap"), folder, SystemClock()).passed
    damaged = record(recordings / "a.mcap", 100, seed=2)
    damaged.write_bytes(damaged.read_bytes()[: round(0.9 * damaged.stat().st_size)])
    record(recordings / "b.mcap", 120, seed=3)
    (folder / "stage.toml").write_text(NEXT)


def train_two(folder: Path) -> None:
    """`one` and `two` in `folder`: the scene, then the same scene under bluer light."""
    record(folder / "one.mcap", 120, seed=1)
    record(folder / "two.mcap", 90, seed=2, tint=0.5)
    run_stage(plan("one", "one.mcap"), folder, SystemClock())
    run_stage(plan("two", "two.mcap", parent="one", epochs=6), folder, SystemClock())
