"""A device on the simulated line whose slots hold the encoders under tests/data; needs neither torch nor onnx."""

from __future__ import annotations

from pathlib import Path

from edge.config import DeviceConfig, SensorSettings
from edge.replay import simulated
from edge.slots import Slots
from lineside.clock import NS, SystemClock
from lineside.files import sha256
from lineside.recording import About, Recorder

DATA = Path(__file__).parent / "data"
MODALITIES = {"cam0": "camera", "mic0": "microphone"}
SENSORS = [SensorSettings(name=name, modality=kind, source="simulation") for name, kind in MODALITIES.items()]
SITE = "line1"
START_NS = 1_700_000_000 * NS


def install(state: Path, *modalities: str) -> Slots:
    """Put version 1 of these modalities (all when none is named) in use, as an updater would have."""
    slots = Slots(state, SystemClock())
    for modality in modalities or MODALITIES.values():
        data = (DATA / f"{modality}-1.onnx").read_bytes()
        target = f"models/{modality}/{modality}-1.onnx"
        slots.stage(modality, data, version=1, expected_sha256=sha256(data), target=target)
        slots.switch(modality)
    return slots


def record(path: Path, config: DeviceConfig, seconds: float) -> Path:
    """Normal running of the device's simulated sensors."""
    with Recorder(path, About(station="press", sensors=MODALITIES)) as recorder:
        for samples in simulated(config, Path(), START_NS, seconds):
            recorder.write(samples)
    return path
