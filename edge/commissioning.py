"""Commissioning: prepared windows of normal running, kept on the device.

Kept as encoder inputs, not as embeddings, so that a new encoder learns the same normal running in its own
terms, on the device, before it is switched in. Nothing of it leaves the device.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.config import DeviceConfig
from edge.encoder import Encoder
from edge.ensemble import Ensemble
from edge.monitor import Watch
from edge.triage import Scene, scene
from lineside.clock import NS
from lineside.errors import LinesideError, RecordingError
from lineside.files import write_atomic
from lineside.fusion import MIN_MOMENTS, Encoded, Normal
from lineside.projections import Space

BATCH = 64
SCENE_WINDOWS = 128  # spread over all; medians of pictures take their time


@dataclass
class Commissioning:
    """Moments of normal running: per sensor its prepared window, or None where the sensor was absent or flagged.

    `fingerprints` names the preparation per sensor; a window of another preparation is not comparable. `start_ns` says
    when each moment began: what follows it closely remembers it.
    """

    modalities: dict[str, str]
    fingerprints: dict[str, str]
    moments: list[dict[str, NDArray[np.generic]]] = field(default_factory=list)
    start_ns: list[int] = field(default_factory=list)

    @classmethod
    def begin(cls, modalities: Mapping[str, str], encoders: Mapping[str, Encoder]) -> Commissioning:
        """An empty set for these sensors (name -> modality), prepared as these encoders (by modality) want it."""
        prints = {sensor: encoders[modality].card.prepare_sha256 for sensor, modality in modalities.items()}
        return cls(dict(modalities), prints)

    def add(self, prepared: dict[str, NDArray[np.generic]], start_ns: int) -> None:
        """Take the prepared windows of one moment; an empty moment is passed over."""
        if prepared:
            self.start_ns.append(start_ns)
            self.moments.append(prepared)

    def ensemble(self, encoders: Mapping[str, Encoder], config: DeviceConfig) -> Ensemble:
        """These encoders with normal running as they see it, and what is to be watched for slow change.

        A sensor whose modality has no encoder was taken away since. Raises LinesideError when they cannot see it, or
        it is too short.
        """
        encoded = {}
        for sensor, modality in self.modalities.items():
            if (encoder := encoders.get(modality)) is None:
                continue
            if encoder.card.prepare_sha256 != self.fingerprints[sensor]:
                reason = f"{encoder.card.name} prepares windows otherwise than at commissioning"
                raise LinesideError(sensor, reason, "commission again: `lineside edge commission`")
            encoded[sensor] = self._encode(sensor, encoder)
        try:
            normal = Normal.fit(encoded, config.commissioning.coreset)
        except ValueError as error:
            mend = f"commission on more than {MIN_MOMENTS} moments of normal running"
            raise LinesideError("commissioning", str(error), mend) from error
        seen = {sensor: one.embedding[np.isfinite(one.embedding).all(axis=1)] for sensor, one in encoded.items()}
        watch = Watch(
            spaces={sensor: Space.fit(rows) for sensor, rows in seen.items()},
            pairs=tuple("+".join(pair) for pair in normal.pairs),
            hop_ns=round(config.windows.hop_s * NS),
            learn_hours=config.alarm.learn_hours,
            false_alarm_days=config.alarm.days_each,
        )
        return Ensemble(encoders, normal, watch, self.start_ns[-1], self._scenes(encoders))

    def _scenes(self, encoders: Mapping[str, Encoder]) -> dict[str, Scene]:
        """The background of each sensor that has one."""
        found = {}
        for sensor, modality in self.modalities.items():
            windows = [moment[sensor] for moment in self.moments if sensor in moment]
            if modality in encoders and windows:
                chosen = windows[:: -(-len(windows) // SCENE_WINDOWS)]
                found[sensor] = scene(encoders[modality].spec, np.stack(chosen))
        return {sensor: known for sensor, known in found.items() if known is not None}

    def _encode(self, sensor: str, encoder: Encoder) -> Encoded:
        """One row a moment, NaN where the sensor is missing."""
        have = [i for i, moment in enumerate(self.moments) if sensor in moment]
        batches = [have[start : start + BATCH] for start in range(0, len(have), BATCH)]
        done = [encoder.encode(np.stack([self.moments[i][sensor] for i in batch])) for batch in batches]
        return Encoded(
            self._rows(have, [one.embedding for one in done]), self._rows(have, [one.features for one in done])
        )

    def _rows(self, have: list[int], parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        found = np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
        rows = np.full((len(self.moments), found.shape[1]), np.nan, np.float32)
        rows[have] = found
        return rows

    def save(self, path: Path) -> None:
        """Write the set as one npz file, atomically."""
        arrays: dict[str, NDArray[np.generic]] = {}
        for sensor, modality in self.modalities.items():
            have = [i for i, moment in enumerate(self.moments) if sensor in moment]
            arrays[f"{sensor}:about"] = np.array([modality, self.fingerprints[sensor]])
            arrays[f"{sensor}:index"] = np.array(have, np.int64)
            arrays[f"{sensor}:windows"] = np.stack([self.moments[i][sensor] for i in have]) if have else np.zeros(0)
        buffer = io.BytesIO()
        starts = np.array(self.start_ns, np.int64)
        np.savez(buffer, start_ns=starts, **arrays)  # type: ignore[arg-type]
        write_atomic(path, buffer.getvalue(), mode=0o600)

    @classmethod
    def load(cls, path: Path) -> Commissioning:
        """Read a set that `save` wrote. Raises RecordingError when the file is damaged."""
        try:
            with np.load(path, allow_pickle=False) as file:
                sensors = [key.removesuffix(":about") for key in file.files if key.endswith(":about")]
                about = {sensor: [str(value) for value in file[f"{sensor}:about"]] for sensor in sensors}
                start_ns: list[int] = file["start_ns"].tolist()
                moments: list[dict[str, NDArray[np.generic]]] = [{} for _ in start_ns]
                for sensor in sensors:
                    windows = file[f"{sensor}:windows"]
                    for place, i in enumerate(file[f"{sensor}:index"]):
                        moments[int(i)][sensor] = windows[place]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            mend = "delete it and commission again"
            raise RecordingError(str(path), f"commissioning cannot be read ({error})", mend) from error
        return cls({s: a[0] for s, a in about.items()}, {s: a[1] for s, a in about.items()}, moments, start_ns)
