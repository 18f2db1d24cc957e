"""A station whose state is told by labels: three kinds of sensor, each of which knows it in part."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lineside.clock import NS
from lineside.features import CameraPrepare, FeaturesPrepare, SeriesPrepare
from lineside.recording import About, Label, Recorder
from lineside.windows import Samples
from trainer.adapt_plan import AdaptPlan, LoraSettings, RegisterPlan, UmtSettings
from trainer.data import Dataset, View
from trainer.labelled import by_time
from trainer.plan import RecordingPart

NAMES = ("idle", "jam", "running")
SPECS = {
    "camera": CameraPrepare(frames=1, height=32, width=32),
    "series": SeriesPrepare(channels=1, samples=64),
    "gauge": FeaturesPrepare(width=6, backbone="9a" * 32),
}
KINDS = {"cam0": "camera", "pump0": "series", "aux0": "gauge"}
START_NS = 1_700_000_000 * NS
HERE = [RecordingPart("line.mcap")]


def register_plan(**changes) -> RegisterPlan:
    return RegisterPlan(**{"registry": "registry", "recordings": HERE, "epochs": 15, "batch": 16, **changes})


def adapt_plan(**changes) -> AdaptPlan:
    quick = {"epochs": 2, "batch": 16, "lora": LoraSettings(ranks=[2]), "umt": UmtSettings(epochs=2)}
    return AdaptPlan(**{"registry": "registry", "recordings": HERE, "out": "fused", **quick, **changes})


def window(kind: str, state: int, rng: np.random.Generator) -> np.ndarray:
    """One prepared window. The camera cannot tell states 1 and 2, the pump 0 and 1; the gauge tells all, badly."""
    if kind == "camera":
        picture = rng.normal(90, 12, (3, 32, 32))
        picture[:, :, 4 + 14 * min(state, 1) : 12 + 14 * min(state, 1)] += 70
        return np.clip(picture, 0, 255).astype(np.uint8)
    if kind == "series":
        turns = 3 + 6 * max(state - 1, 0)
        return (np.sin(2 * np.pi * turns * np.arange(64) / 64) + rng.normal(0, 0.4, 64))[None].astype(np.float32)
    return (np.eye(6)[state] + rng.normal(0, 0.8, 6)).astype(np.float32)


def dataset(count=180, sensors=tuple(KINDS), missing=0.0, seed=0) -> Dataset:
    """Moments of 1 s without overlap; each state lasts ten of them."""
    rng = np.random.default_rng(seed)
    state = (np.arange(count) // 10) % len(NAMES)
    views = {}
    for sensor in sensors:
        present = rng.random(count) >= missing
        windows = np.stack([window(KINDS[sensor], int(k), rng) for k in state])
        views[sensor] = View(KINDS[sensor], windows, present)
    specs = {KINDS[sensor]: SPECS[KINDS[sensor]] for sensor in sensors}
    start = START_NS + np.arange(count) * NS
    labels = np.array(NAMES, np.str_)[state]
    return Dataset(views, specs, start, np.zeros(count, np.int64), NS, NS, {}, [], labels)


def labelled(**changes):
    return by_time(dataset(**changes), 0.25, 0.25, "scene")


def record(path: Path, seconds: int = 90, labels=True) -> Path:
    """The camera and two pumps of that station as a recording; `jam` is labelled as a fault."""
    rng = np.random.default_rng(5)
    about = About(station="s1", sensors={"cam0": "camera", "pump0": "series", "pump1": "series"}, hop_s=0.5)
    with Recorder(path, about) as recorder:
        for second in range(seconds):
            state, now = (second // 10) % len(NAMES), START_NS + second * NS
            if labels and not second % 10:
                name = NAMES[state]
                recorder.label(Label(now, now + 10 * NS, name, fault=name == "jam"))
            frames = np.stack([window("camera", state, rng).transpose(1, 2, 0) for _ in range(2)])
            recorder.write(Samples("cam0", "camera", now, 2.0, frames, now + np.arange(2) * (NS // 2)))
            for pump in ("pump0", "pump1"):
                recorder.write(Samples(pump, "series", now, 64.0, window("series", state, rng).T.copy()))
    return path
