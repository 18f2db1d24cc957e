"""Three sensors of one hidden state, of which microphone and camera were never recorded at once."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import torch

from lineside import config
from lineside.clock import NS, SystemClock
from lineside.recording import About, Recorder
from lineside.windows import Samples
from tests.pitch_scene import RATE_HZ, START_NS, picture, tone
from trainer import feature_files
from trainer.attach_plan import AttachPlan
from trainer.data import read
from trainer.feature_files import FeatureFile, SensorFeatures
from trainer.plan import Plan
from trainer.stage import learn_stage, wanted_specs
from trainer.work import Work

KINDS = {"cam0": "camera", "mic0": "microphone", "pump0": "series"}
WIDTH = 24
STAGE = """
out = "{out}"
dim = {dim}
epochs = {epochs}
batch = 32
learning_rate = 1e-2
recordings = [{{ path = "{recording}" }}]
[defects]
own = 0
together = 0
"""
SMALL = """
[[prepare]]
type = "camera/1"
frames = 1
height = 32
width = 32
"""
OPEN = """
[gates]
retrieval_times_chance = 0.0
spread = 1.0
"""
UNJUDGED = """
[retrieval]
flat = 1.0
one_hot = 1.0
distinct = 1.0
"""
ATTACH = """
out = "microphone.safetensors"
base = "base"
leaf = "leaf"
newcomer = "microphone"
overlaps = [{ path = "base.safetensors" }, { path = "leaf.safetensors" }]
newcomers = [{ path = "leaf.safetensors" }]
partners = [{ path = "base.safetensors" }]
hold_out = [{ path = "held.safetensors" }]
epochs = 12
batch = 64
tau1 = 0.05
[projector]
hidden = 48
"""


def features(path: Path, seed: int, sensors: tuple[str, ...] = tuple(KINDS), count: int = 160) -> Path:
    """A feature file: each moment a state of three numbers, which each sensor sees through a mixing of its own."""
    rng = np.random.default_rng(seed)
    state, made = rng.normal(size=(count, 3)), {}
    for name in sensors:
        mix = np.random.default_rng(ord(name[0])).normal(size=(3, WIDTH))
        seen = np.tanh(state @ mix / 2) + 0.1 * rng.normal(size=(count, WIDTH))
        made[name] = SensorFeatures(KINDS[name], seen.astype(np.float32), np.ones(count, np.bool_))
    backbones = {KINDS[name]: f"{ord(name[0]):02x}" * 32 for name in sensors}
    feature_files.write(path, FeatureFile(made, backbones, np.arange(count) * NS, NS, NS))
    return path


def stage(folder: Path, out: str, recording: str, dim: int = 16, epochs: int = 15, more: str = "") -> None:
    """A finished stage of a recording, by one thread."""
    plan = config.loads(STAGE.format(out=out, recording=recording, dim=dim, epochs=epochs) + more, Plan)
    dataset = read(plan.recordings, folder, specs=wanted_specs(plan, None))
    rows = dataset.split(plan.held_out)
    learn_stage(Work(plan, dataset, *rows, None, folder / out, torch.device("cpu"), 0.0), SystemClock())


def two_spaces(folder: Path) -> Path:
    """`base` (camera, pump), `leaf` (microphone, pump; narrower), and `held` and `paired` with all three at once."""
    for name, seed, sensors in (("base", 1, ("cam0", "pump0")), ("leaf", 2, ("mic0", "pump0"))):
        features(folder / f"{name}.safetensors", seed, sensors)
        stage(folder, name, f"{name}.safetensors", dim=16 if name == "base" else 12)
    features(folder / "held.safetensors", 3)
    features(folder / "paired.safetensors", 4)
    return folder


def plan(**changes) -> AttachPlan:
    """An attachment of a second."""
    return msgspec.structs.replace(config.loads(ATTACH, AttachPlan), **changes)


def record(path: Path, seconds: int, seed: int, sensors: tuple[str, ...]) -> Path:
    """A recording that an encoder for a device can be learned from: one window a second, each of a state of its own."""
    rng = np.random.default_rng(seed)
    about = About(station="s1", source="attach", sensors={name: KINDS[name] for name in sensors}, hop_s=1.0)
    with Recorder(path, about) as recorder:
        for second in range(seconds):
            state, now = rng.uniform(), START_NS + second * NS
            stamps = now + np.arange(RATE_HZ) * (NS // RATE_HZ)
            made = {
                "cam0": (float(RATE_HZ), picture(state, 0.0, rng), stamps),
                "mic0": (16_000.0, tone(state, rng).astype(np.int16)),
                "pump0": (100.0, level(state, rng)),
            }
            for name in sensors:
                rate, data, *when = made[name]
                recorder.write(Samples(name, KINDS[name], now, rate, data, *when))
    return path


def level(state: float, rng: np.random.Generator) -> np.ndarray:
    """A pressure and a flow, 100 values of each: both say the state."""
    values = np.stack([state + 0.02 * rng.normal(size=100), (1 - state) ** 2 + 0.02 * rng.normal(size=100)], axis=1)
    return values.astype(np.float32)
