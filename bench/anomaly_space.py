"""Where is a fault far from normal: among the embeddings, or among the encoder's features?

`python -m bench.anomaly_space` trains on 60 s of the simulated line (and, where ../shared is, on the training split of
fan_vibration, judged on its validation split) with three seeds, and prints the AUROC of the distance to a coreset of
the training windows: of embeddings, of features, and of whitened features (lineside.coreset.Coreset).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from edge.config import DeviceConfig, DeviceSettings, SensorSettings
from edge.faults import FAULTS, Injector
from edge.importers import import_recording
from edge.replay import simulated
from lineside.clock import NS, SystemClock
from lineside.coreset import Coreset, distances, k_center
from lineside.fusion import Encoded
from lineside.metrics import auroc
from lineside.recording import About, Recorder, Recording
from trainer import checkpoint, evaluate
from trainer.data import Dataset, read
from trainer.encoders import Encoder
from trainer.plan import Plan, RecordingPart
from trainer.stage import run_stage

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "dev" / "fan_vibration"
SENSORS = {"cam0": "camera", "mic0": "microphone"}
LINE_FAULTS = ("dirty_lens", "misaligned_part", "bearing_noise")
SEEDS, KEPT, LINE_S = (1, 2, 3), 128, 60
LINE_EPOCHS, FAN_EPOCHS = 80, 12  # 3 batches an epoch and 35: some 240 and 420 steps
START_NS = 1_700_000_000 * NS


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [*line(Path(folder)), *(fan(Path(folder)) if SHARED.is_dir() else ())]
    print("| learned from | fault | seed | embeddings | features | whitened features |\n|---|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row) + " |")


def line(folder: Path) -> Iterator[tuple[str | int | float, ...]]:
    """The simulated line: other seconds of it as normal, and under each fault."""
    normal = _simulated(folder / "normal.mcap", LINE_S, seed=1)
    looks = {fault: _simulated(folder / f"{fault}.mcap", LINE_S, 2, fault) for fault in ("", *LINE_FAULTS)}
    for seed in SEEDS:
        stage, encoders = _trained(folder / f"line-{seed}", normal, seed, LINE_EPOCHS)
        known = _read(normal, stage)
        seen = {fault: _read(path, stage) for fault, path in looks.items()}
        for fault in LINE_FAULTS:
            (modality,) = FAULTS[fault].effects
            sets = [_vectors(encoders[modality], data, modality) for data in (known, seen[""], seen[fault])]
            yield ("simulated line, 60 s", fault, seed, *_compared(*sets))


def fan(folder: Path) -> Iterator[tuple[str | int | float, ...]]:
    """A real accelerometer on a ceiling fan; the test split is left alone."""
    import_recording(SHARED, folder / "fan.mcap", split="train")
    import_recording(SHARED, folder / "labelled.mcap", split="val")
    labelled = Recording(folder / "labelled.mcap")
    faulty = {label.start_ns for label in labelled.labels() if label.fault}
    with Recorder(folder / "val.mcap", labelled.about) as recorder:  # without its labels, so that all of it is read
        for samples in labelled.samples():
            recorder.write(samples)
    for seed in SEEDS:
        stage, encoders = _trained(folder / f"fan-{seed}", folder / "fan.mcap", seed, FAN_EPOCHS)
        known, seen = _read(folder / "fan.mcap", stage), _read(folder / "val.mcap", stage)
        wrong = np.array([int(start) in faulty for start in seen.start_ns])[seen.views["vib0"].present]
        vectors = _vectors(encoders["series"], seen, "series")
        split = [Encoded(vectors.embedding[chosen], vectors.features[chosen]) for chosen in (~wrong, wrong)]
        yield (
            "fan_vibration train",
            "anomaly (val)",
            seed,
            *_compared(_vectors(encoders["series"], known, "series"), *split),
        )


def _simulated(path: Path, seconds: int, seed: int, fault: str = "") -> Path:
    sensors = [SensorSettings(name=n, modality=m, source="simulation", seed=seed) for n, m in SENSORS.items()]
    config = DeviceConfig(device=DeviceSettings(id="bench", site="bench", station="press"), sensors=sensors)
    injector = Injector()
    if fault:
        injector.start(fault, START_NS + 3600 * NS)
    with Recorder(path, About(station="press", sensors=SENSORS)) as recorder:
        for samples in simulated(config, path.parent, START_NS, seconds):
            recorder.write(injector.apply(samples))
    return path


def _trained(out: Path, recording: Path, seed: int, epochs: int) -> tuple[checkpoint.Stage, Mapping[str, Encoder]]:
    plan = Plan(out=str(out), recordings=[RecordingPart(path=str(recording))], seed=seed, epochs=epochs)
    stage = run_stage(plan, out.parent, SystemClock())
    assert stage is not None
    encoders = checkpoint.load_tensors(out, stage).encoders
    return stage, {modality: encoders[modality].eval() for modality in stage.prepare}


def _read(path: Path, stage: checkpoint.Stage) -> Dataset:
    return read([RecordingPart(path=str(path))], path.parent, stage.windows, dict(stage.prepare))


def _vectors(encoder: Encoder, data: Dataset, modality: str) -> Encoded:
    return evaluate.encode(encoder, data.of_modality(modality, np.arange(len(data))))


def _compared(known: Encoded, normal: Encoded, faulty: Encoded) -> tuple[float, ...]:
    """AUROC by embeddings, by features, by whitened features."""
    plain = []
    for kept, well, ill in zip(known, normal, faulty, strict=True):
        bank = kept[k_center(kept, KEPT)]
        plain.append(auroc(distances(well, bank), distances(ill, bank)))
    coreset = Coreset.fit(known.features, KEPT)
    return (*plain, auroc(coreset.distances(normal.features), coreset.distances(faulty.features)))


if __name__ == "__main__":
    main()
