"""Digits written and spoken: do a picture and a sound that do not belong together lose their agreement?

The device is commissioned on pairs of the `val` split and judges those of `test`, once as they are and once with every
sound taken from a pair of another digit. Nothing is chosen on `test`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.config import DeviceConfig, DeviceSettings, Modality, SensorSettings, WindowSettings
from edge.encoder import Encoder
from edge.ensemble import Ensemble
from edge.evaluation.section import Cell, Goal, Plot, Section, Table
from edge.importers import import_recording
from edge.pipeline import Pipeline
from edge.replay import commission, through
from lineside.clock import NS
from lineside.messages import Score
from lineside.metrics import auroc, auroc_error
from lineside.recording import Recording
from lineside.windows import Samples

SENSORS: dict[str, Modality] = {"cam0": "camera", "mic0": "microphone"}
PAIR = "cam0+mic0"
COMMISSIONED, JUDGED = 900, 900  # pairs


def evaluate(source: Path, encoders: Mapping[str, Encoder]) -> Section:
    """Commission on `val`, judge `test`; `encoders` by modality know the digits (bench.encoders)."""
    with tempfile.TemporaryDirectory() as folder:
        import_recording(source, known := Path(folder) / "val.mcap", split="val", limit=COMMISSIONED)
        import_recording(source, seen := Path(folder) / "test.mcap", split="test", limit=JUDGED)
        config = _config()
        recording = Recording(known)
        ensemble = commission(config, Ensemble(encoders), recording).ensemble(encoders, config)
        test = Recording(seen)
        digits = [label.label for label in test.labels()]
        items = list(_items(test))
    matched = _judged(config, ensemble, items, np.arange(len(items)))
    mismatched = _judged(config, ensemble, items, derangement(digits))
    return _section(matched, mismatched, ensemble)


def derangement(labels: list[str]) -> NDArray[np.intp]:
    """A place (n,) for each item whose label is another one, in a fixed order; every item is used about once.

    >>> derangement(["a", "a", "b", "b"]).tolist()
    [3, 2, 0, 1]
    """
    left = list(np.random.default_rng(0).permutation(len(labels)))
    found: list[int] = []
    for label in labels:
        place = next((k for k in left if labels[k] != label), None)
        if place is None:  # only this digit is left: one that is used already
            place = next(k for k in found if labels[k] != label)
        else:
            left.remove(place)
        found.append(int(place))
    return np.array(found, np.intp)


def _items(recording: Recording) -> Iterator[tuple[list[Samples], list[Samples]]]:
    """The picture and the sound of each second."""
    seconds: dict[int, tuple[list[Samples], list[Samples]]] = {}
    for samples in recording.samples():
        seconds.setdefault(samples.start_ns // NS, ([], []))[samples.sensor == "mic0"].append(samples)
    yield from (seconds[second] for second in sorted(seconds))


def _judged(
    config: DeviceConfig,
    ensemble: Ensemble,
    items: list[tuple[list[Samples], list[Samples]]],
    partner: NDArray[np.intp],
) -> list[Score]:
    """Scores of all pictures, each with the sound of its partner, laid into the picture's second."""

    def stream() -> Iterator[Samples]:
        for (pictures, own), place in zip(items, partner, strict=True):
            yield from pictures
            shift = own[0].start_ns - items[place][1][0].start_ns
            yield from (replace(sound, start_ns=sound.start_ns + shift) for sound in items[place][1])

    pipeline = Pipeline(config)
    pipeline.ensemble = ensemble
    return [message for message in through(pipeline, stream()) if isinstance(message, Score)]


def _section(matched: list[Score], mismatched: list[Score], ensemble: Ensemble) -> Section:
    def both(value: Callable[[Score], float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.array([value(score) for score in matched]), np.array([value(score) for score in mismatched])

    agreement, fused = both(lambda score: score.agreements[PAIR]), both(lambda score: score.evidence)
    strangest, p_value = both(lambda score: -min(score.without.values())), both(lambda score: score.p_value)
    area = auroc(-agreement[0], -agreement[1])
    error = auroc_error(area, len(agreement[0]), len(agreement[1]))
    limit = 0.01
    rows: list[tuple[Cell, ...]] = [
        ("agreement (cosine)", area, None, None),
        ("fused evidence", auroc(*fused), *(float((p <= limit).mean()) for p in p_value)),
        ("strangest sensor alone", auroc(*strangest), None, None),
    ]
    edges = np.linspace(-1, 1, 81)
    middle = (edges[1:] + edges[:-1]) / 2
    lines = {
        name: (middle, np.histogram(values, edges)[0] / len(values))
        for name, values in zip(("belongs together", "does not"), agreement, strict=True)
    }
    versions = ", ".join(f"{modality} {version}" for modality, version in ensemble.versions.items())
    return Section(
        "Digits: picture and sound that do not belong together",
        f"Encoders ({versions}) learned from labels which digit is which: this is supervised alignment. Commissioned "
        f"on {COMMISSIONED} pairs of `val`, judged on {len(matched)} pairs of `test` as they are and {len(mismatched)} "
        f"with the sound of another digit; standard error of the AUROC {error:.3f} (Hanley and McNeil).",
        goals=[Goal("agreement AUROC", area, least=0.95)],
        tables=[
            Table(
                f"AUROC of mismatched against matched pairs; share of each at p <= {limit:g}.",
                ("score", "AUROC", "false alarms", "found"),
                rows,
            )
        ],
        plots=[Plot("agreement of picture and sound", "cosine", "share of pairs", lines)],
    )


def _config() -> DeviceConfig:
    sensors = [SensorSettings(name=n, modality=m, source="replay", device="digits.mcap") for n, m in SENSORS.items()]
    return DeviceConfig(
        device=DeviceSettings(id="digits", site="bench", station="desk"),
        sensors=sensors,
        windows=WindowSettings(length_s=1.0, hop_s=1.0),
    )
