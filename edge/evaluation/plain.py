"""Encoders without weights: fixed formulas in the place of a trained graph, for data that nobody trained for.

Each is an edge.encoder.Encoder whose session is a formula: preparation, ensemble, pipeline and alarms are the
device's own. Formulas of two modalities share no space, and what an agreement of theirs would be means nothing: a
station is given one modality of them only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.commissioning import Commissioning
from edge.config import AlarmSettings, DeviceConfig, DeviceSettings, Modality, SensorSettings, WindowSettings
from edge.encoder import Encoder
from edge.ensemble import Ensemble
from edge.foreign.base import EPOCH_NS, Import
from edge.pipeline import Pipeline
from lineside import features
from lineside.clock import NS
from lineside.features import RawPrepare
from lineside.messages import Message
from lineside.release import Card, Certificate
from lineside.windows import Samples

Floats = NDArray[np.float64]
Item = tuple[str, Sequence[Samples]]  # the station's state ("" where it tells none), and what sensors gave

BANDS, PARTS = 16, 3
LEAST_LEVEL, LEAST_POWER = 1e-4, 1e-8  # of a series in its unit: what an 8 to 14 bit converter cannot tell from nothing
REACH = 3.0  # typical logarithm
GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclass(frozen=True)
class Formula:
    """A formula as a session: `make` gives vectors (n, f) of prepared windows (n, *shape)."""

    make: Callable[[NDArray[Any]], Floats]

    def run(self, wanted: Sequence[str], fed: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """The vectors at unit norm, once for each output that is `wanted`: embedding and features are the same."""
        made = self.make(fed["window"])
        unit = (made / np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-12)).astype(np.float32)
        return [unit for _ in wanted]


def encoder(spec: RawPrepare) -> Encoder:
    """The formula of the spec's modality as an encoder of windows that are prepared by it."""
    modality, formula = features.modality(spec), Formula(FORMULAS[features.modality(spec)])
    nothing = np.ones((1, *features.shape(spec)), features.dtype(spec))
    card = Card(
        modality=modality,
        version=1,
        space=f"plain-{modality}",
        encoder="plain",
        dim=formula.run(["features"], {"window": nothing})[0].shape[1],
        precision="fp32",
        prepare=features.to_json(spec),
        prepare_sha256=features.fingerprint(spec),
        stage="plain",
        golden_inputs=b"",
        golden_outputs=b"",
        tolerance=0.0,
        certificate=Certificate(stage=0, parent="", embedding_drift={}, similarity_drift={}, gates=[]),
    )
    return Encoder(card, spec, "formula", formula)


def series(windows: NDArray[Any]) -> Floats:
    """Of (n, channels, samples), per channel: ln of the median deviation, of the standard one, and of BANDS bands.

    (median absolute deviation, standard deviation, root of the mean power in bands of even width, without the mean)

    >>> wave = np.sin(np.arange(200.0))[None, None]
    >>> quiet, loud = (series(size * wave)[0, 1] for size in (1.0, np.e))
    >>> round(float(loud - quiet), 3)
    1.0
    """
    x = windows.astype(np.float64)
    spread = np.median(np.abs(x - np.median(x, axis=2, keepdims=True)), axis=2)
    still = x - x.mean(axis=2, keepdims=True)
    power = np.abs(np.fft.rfft(still * np.hanning(x.shape[2]))) ** 2 / x.shape[2]
    bands = [power[:, :, band].mean(axis=2) for band in np.array_split(np.arange(1, power.shape[2]), BANDS)]
    levels = np.log(np.stack([spread, x.std(axis=2)], axis=2) + LEAST_LEVEL)
    loud = 0.5 * np.log(np.stack(bands, axis=2) + LEAST_POWER)
    return lifted(np.concatenate([levels, loud], axis=2).reshape(len(x), -1))


def camera(windows: NDArray[Any]) -> Floats:
    """Of (n, 3 * frames, height, width): the mean grey picture, less its mean, over its standard deviation.

    Brighter and of more contrast is the same.

    >>> picture = np.random.default_rng(0).integers(0, 100, (1, 3, 12, 28))
    >>> bool(np.allclose(camera(picture), camera(2 * picture + 20)))
    True
    """
    n, _, height, width = windows.shape
    colours = windows.reshape(n, -1, 3, height, width).mean(axis=1, dtype=np.float64)
    grey = np.einsum("nchw,c->nhw", colours, GREY).reshape(n, -1)
    off = grey - grey.mean(axis=1, keepdims=True)
    return np.asarray(off / np.maximum(off.std(axis=1, keepdims=True), 1e-6))


def microphone(windows: NDArray[Any]) -> Floats:
    """Of log-mel power (n, 1, mels, frames): mean and standard deviation of each band in each third of the window."""
    thirds = np.array_split(windows[:, 0].astype(np.float64), PARTS, axis=2)
    told = [(third.mean(axis=2), third.std(axis=2)) for third in thirds]
    return lifted(np.concatenate([column for both in told for column in both], axis=1))


def lifted(logs: Floats) -> Floats:
    """One constant column more (n, f + 1): scaled to unit norm, no two rows that differ become the same.

    >>> both = lifted(np.array([[1.0, 1.0], [2.0, 2.0]]))
    >>> unit = both / np.linalg.norm(both, axis=1, keepdims=True)
    >>> bool(np.allclose(*unit))
    False
    """
    return np.hstack([logs, np.full((len(logs), 1), REACH * np.sqrt(logs.shape[1]))])


FORMULAS: dict[str, Callable[[NDArray[Any]], Floats]] = {"series": series, "camera": camera, "microphone": microphone}


def device(sensor: str, modality: Modality, learned: int = 86_400, states: Sequence[str] = ()) -> DeviceConfig:
    """A device of one sensor and windows of a second, which learns from `learned` of them what is ordinary."""
    return DeviceConfig(
        device=DeviceSettings(id="plain", site="desk", station="station", states=tuple(states)),
        sensors=[SensorSettings(name=sensor, modality=modality, source="replay", device="-")],
        windows=WindowSettings(length_s=1.0, hop_s=1.0),
        alarm=AlarmSettings(learn_hours=learned / 3600),
    )


def commission(config: DeviceConfig, one: Encoder, items: Iterable[Item]) -> Commissioning:
    """Normal running as the device keeps it, of items of a second each."""
    pipeline = Pipeline(config)
    pipeline.ensemble = Ensemble({one.card.modality: one})
    pipeline.commissioning = Commissioning.begin(pipeline.modalities, pipeline.ensemble.encoders)
    live(pipeline, items)
    return pipeline.commissioning


def live(pipeline: Pipeline, items: Iterable[Item], first: int = 0) -> list[Message]:
    """What items of a second each lead to, laid one after the other from second `first` on."""
    heard: list[Message] = []
    for place, (state, item) in enumerate(items, first):
        start_ns = EPOCH_NS + place * NS
        pipeline.station.hear(state, start_ns)
        for samples in item:
            shift = start_ns - samples.start_ns // NS * NS
            stamps = None if samples.stamps_ns is None else samples.stamps_ns + shift
            heard += pipeline.push(replace(samples, start_ns=samples.start_ns + shift, stamps_ns=stamps))
    return heard + pipeline.flush()


def seconds(found: Import) -> dict[int, list[Samples]]:
    """The samples of an imported data set by item, which is its row in the manifest and its second."""
    items: dict[int, list[Samples]] = {}
    for samples in found.stream:
        if isinstance(samples, Samples):
            items.setdefault((samples.start_ns - EPOCH_NS) // NS, []).append(samples)
    return items
