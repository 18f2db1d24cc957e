"""A device on trial: given encoders, sensors that give what such sensors give, and a folder of its own.

What `lineside edge bench` measures. Nothing of an installed device is touched: its encoders are copied.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from edge.commissioning import Commissioning
from edge.config import CommissioningSettings, DeviceConfig, DeviceSettings, RepositorySettings, SensorSettings
from edge.encoder import Encoder
from edge.ensemble import Ensemble
from edge.pipeline import Pipeline
from edge.slots import Slots
from edge.workshop import AUTO, Workshop
from lineside.clock import NS, SimulatedClock
from lineside.errors import ReleaseError
from lineside.features import MicrophonePrepare, SeriesPrepare
from lineside.files import sha256
from lineside.mqtt import BrokerConfig
from lineside.windows import Samples

START_NS = 1_700_000_000 * NS
HEIGHT, WIDTH, FRAMES_HZ, SERIES_HZ = 720, 1280, 10.0, 200.0
RUN_S = 0.1  # of sound and series in one run of samples
POOL = 17  # frames and runs, given in turn: prime, so that moments differ
NORMAL_MOMENTS, LEARN_MOMENTS = 240, 900
NAMES = {"camera": "cam0", "microphone": "mic0", "series": "series0"}


@dataclass(frozen=True)
class Trial:
    """`base` is the folder of the device; `encoders` are those in its slots and `files` what they were, by modality."""

    config: DeviceConfig
    base: Path
    encoders: Mapping[str, Encoder]
    files: Mapping[str, Path]

    def commission(self, moments: int = NORMAL_MOMENTS) -> Commissioning:
        """Learn normal running, and keep it on the device as an agent would."""
        pipeline = Pipeline(self.config)
        pipeline.ensemble = Ensemble(self.encoders)
        pipeline.commissioning = learned = replace(
            Commissioning.begin(pipeline.modalities, self.encoders), rehearsal=None
        )
        for samples in self.samples():
            pipeline.push(samples)
            if len(learned.moments) >= moments:
                break
        learned.save(self.base / self.config.device.state_dir / "commissioning.npz")
        return learned

    def pipeline(self, learned: Commissioning) -> Pipeline:
        """A pipeline that judges by this normal running."""
        made = Pipeline(self.config)
        made.ensemble = learned.ensemble(self.encoders, self.config)
        return made

    def samples(self) -> Iterator[Samples]:
        """What the sensors give, without end, merged by time: every `RUN_S` a run of each."""
        makers = [_Source(sensor, self.encoders[sensor.modality]) for sensor in self.config.sensors]
        for run in itertools.count():
            for maker in makers:
                yield from maker.run(run)


def prepare(files: Sequence[Path], folder: Path, like: DeviceConfig | None = None, broker: int = 1883) -> Trial:
    """A device in `folder` with these encoder files in its slots, and windows and sensors as `like` has them.

    Without `like` it has one sensor a modality; `broker` is the port of one on this machine. Raises ReleaseError for a
    file that is no encoder, and where a modality has none.
    """
    slots = Slots(folder / "state", SimulatedClock(START_NS))
    workshop = Workshop(like.device.runtime if like else AUTO, folder / "state" / "runtimes")
    encoders: dict[str, Encoder] = {}
    found: dict[str, Path] = {}
    for path in files:
        encoder = workshop.ready(path)
        data, modality = path.read_bytes(), encoder.card.modality
        slots.stage(modality, data, version=encoder.card.version, expected_sha256=sha256(data), target=path.name)
        slots.switch(modality)
        encoders[modality], found[modality] = encoder, path
    config = settings(encoders, like, broker)
    if missing := sorted({sensor.modality for sensor in config.sensors} - encoders.keys()):
        raise ReleaseError("missing", ", ".join(missing), "no encoder to measure", "give one with --encoders")
    return Trial(config, folder, encoders, found)


def settings(encoders: Mapping[str, Encoder], like: DeviceConfig | None, broker: int) -> DeviceConfig:
    """The settings of a trial: those of `like`, on this machine alone, with what is ordinary soon learned."""
    if like is None:
        device = DeviceSettings(id="bench", site="bench", station="bench")
        sensors = [_sensor(NAMES[modality], encoder) for modality, encoder in encoders.items()]
        like = DeviceConfig(device=device, sensors=sensors)
    learn_hours = LEARN_MOMENTS * like.windows.hop_s / 3600
    return structs.replace(
        like,
        device=structs.replace(like.device, state_dir="state", states=()),
        broker=BrokerConfig(port=broker),
        repository=RepositorySettings(),
        commissioning=CommissioningSettings(coreset=like.commissioning.coreset),
        alarm=structs.replace(like.alarm, learn_hours=learn_hours),
    )


def _sensor(name: str, encoder: Encoder) -> SensorSettings:
    channels = encoder.spec.channels if isinstance(encoder.spec, SeriesPrepare) else 1
    return SensorSettings(name=name, modality=encoder.card.modality, source="simulation", channels=channels)  # type: ignore[arg-type]


class _Source:
    """Samples of one sensor that cost nothing to make: a pool of different ones, given in turn."""

    def __init__(self, sensor: SensorSettings, encoder: Encoder) -> None:
        self._sensor, chance = sensor, np.random.default_rng(1)
        camera, sound = sensor.modality == "camera", encoder.spec
        usual = FRAMES_HZ if camera else sound.rate_hz if isinstance(sound, MicrophonePrepare) else SERIES_HZ
        self._rate_hz = usual if sensor.modality == "microphone" else sensor.rate_hz or usual
        make = {"camera": _picture, "microphone": _sound, "series": _series}[sensor.modality]
        count = 1 if camera else round(self._rate_hz * RUN_S)
        self._pool = [make(sensor, count, chance) for _ in range(POOL)]
        self._given = 0

    def run(self, number: int) -> Iterator[Samples]:
        """The samples of one span of RUN_S; of a camera as many frames as fall into it."""
        start_ns = START_NS + round(number * RUN_S * NS)
        if self._sensor.modality != "camera":
            yield self._one(start_ns, None)
            return
        while (at_ns := START_NS + round(self._given * NS / self._rate_hz)) < start_ns + RUN_S * NS:
            yield self._one(at_ns, np.array([at_ns], np.int64))

    def _one(self, at_ns: int, stamps: NDArray[np.int64] | None) -> Samples:
        data = self._pool[self._given % POOL]
        self._given += 1
        return Samples(self._sensor.name, self._sensor.modality, at_ns, self._rate_hz, data, stamps)


def _picture(sensor: SensorSettings, _: int, chance: np.random.Generator) -> NDArray[np.generic]:
    """A frame (1, height, width, 3): coarse blotches under the noise of a sensor."""
    height, width = sensor.height or HEIGHT, sensor.width or WIDTH
    coarse = chance.uniform(0, 220, (9, 16, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = chance.normal(0, 3, (height, width, 3)).astype(np.float32)
    return np.asarray(np.clip(smooth + noise, 0, 255), np.uint8)[None]


def _sound(_: SensorSettings, count: int, chance: np.random.Generator) -> NDArray[np.generic]:
    """Noise (count,) of some loudness and colour."""
    white = chance.normal(0, chance.uniform(300, 6000), count + 8)
    weights = chance.uniform(-1, 1, 9)
    return np.clip(np.convolve(white, weights, "valid"), -32_000, 32_000).astype(np.int16)


def _series(sensor: SensorSettings, count: int, chance: np.random.Generator) -> NDArray[np.generic]:
    """Steps with noise (count, channels)."""
    return chance.normal(chance.uniform(-1, 1, sensor.channels), 0.1, (count, sensor.channels)).astype(np.float32)
