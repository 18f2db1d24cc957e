"""Feature files: what frozen backbones made of a recording, so that only heads are trained. No torch, no pickle.

One safetensors file a recording. Every sensor S has `S/features` (n, f), float32 or float16, and `S/present` (n,), bool
or uint8; all share `start_ns` (n,), int64. The metadata's `about` holds the JSON of `About`. Whoever makes the file
marks as not present what the quality rules flag and what is labelled as a fault: no raw window is here to judge by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as pack

from lineside.clock import NS
from lineside.errors import ConfigError, RecordingError
from lineside.features import FeaturesPrepare, Prepare, kind
from lineside.files import write_atomic

SUFFIX = ".safetensors"
STORED = {"features": ("F32", "F16"), "present": ("BOOL", "U8"), "start_ns": ("I64",)}
AGAIN = "make the feature file again"

Features = NDArray[np.floating[Any]]


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a feature file says of itself; `backbones` holds, by modality, the SHA-256 of the frozen network's file."""

    modalities: dict[str, str]
    backbones: dict[str, str]
    length_ns: int
    hop_ns: int
    labels: list[str]


@dataclass(frozen=True)
class SensorFeatures:
    """What one sensor's backbone made: `features` (n, f); rows that are not `present` (n,) are never read."""

    modality: str
    features: Features
    present: NDArray[np.bool_]


@dataclass(frozen=True)
class FeatureFile:
    """What backbones made of one recording, moments in the order of time; `labels` (n,), or empty for none at all."""

    sensors: dict[str, SensorFeatures]
    backbones: dict[str, str]
    start_ns: NDArray[np.int64]
    length_ns: int
    hop_ns: int
    labels: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, np.str_))

    def rows(self, from_s: float = 0.0, to_s: float = 0.0) -> NDArray[np.int64]:
        """The moments that lie whole between two times from the first one's start; `to_s = 0` means to the end.

        A window that reaches over `to_s` is left out, as it is when a recording is cut: parts share no sample.
        """
        since = self.start_ns - self.start_ns[0]
        chosen = since >= round(from_s * NS)
        if to_s:
            chosen &= since + self.length_ns <= round(to_s * NS)
        return np.flatnonzero(chosen)


def write(path: Path, file: FeatureFile) -> None:
    """Write a feature file whole; features are stored as float32 unless they are float16.

    Raises RecordingError when it cannot be written, or holds what `read` would refuse.
    """
    if not file.sensors:
        raise _refused(path, "names no sensors")
    sensors = {name: _stored(sensor) for name, sensor in file.sensors.items()}
    _check(path, FeatureFile(sensors, file.backbones, file.start_ns, file.length_ns, file.hop_ns, file.labels))
    about = About(
        modalities={name: sensor.modality for name, sensor in sensors.items()},
        backbones=file.backbones,
        length_ns=file.length_ns,
        hop_ns=file.hop_ns,
        labels=file.labels.tolist() or [""] * len(file.start_ns),
    )
    tensors: dict[str, NDArray[Any]] = {"start_ns": np.ascontiguousarray(file.start_ns, np.int64)}
    for name, sensor in sensors.items():
        tensors |= {f"{name}/features": sensor.features, f"{name}/present": sensor.present}
    try:
        write_atomic(path, pack(tensors, {"about": msgspec.json.encode(about).decode()}))
    except OSError as error:
        raise RecordingError(str(path), f"cannot be written ({error.strerror})", "choose another place") from error


def read(path: Path, only: set[str] | None = None) -> FeatureFile:
    """Read a feature file; `only` leaves out sensors of other modalities.

    Raises RecordingError when it cannot be read, is damaged, has wrong shapes, or features that are not numbers.
    """
    try:
        with safe_open(path, "np") as tensors:
            about = _about(path, tensors.metadata() or {})
            sensors = {
                name: SensorFeatures(
                    modality,
                    _tensor(path, tensors, f"{name}/features", "features"),
                    _tensor(path, tensors, f"{name}/present", "present").astype(np.bool_),
                )
                for name, modality in about.modalities.items()
                if only is None or modality in only
            }
            start_ns = _tensor(path, tensors, "start_ns", "start_ns")
    except OSError as error:
        raise _refused(path, f"cannot be read ({error})", "check the path") from error
    except SafetensorError as error:
        raise _refused(path, f"is damaged or no safetensors file ({error})") from error
    if len(about.labels) != len(start_ns):
        raise _refused(path, f"has {len(about.labels)} labels for {len(start_ns)} moments")
    labels = np.array(about.labels, np.str_)
    file = FeatureFile(sensors, about.backbones, start_ns, about.length_ns, about.hop_ns, labels)
    _check(path, file)
    return file


def agree(path: Path, file: FeatureFile, known: Mapping[str, Prepare]) -> dict[str, FeaturesPrepare]:
    """The preparation of each modality of a file, which must be the one that is `known` (of the parent, another file).

    Raises ConfigError when it is of another backbone, of none, or of another width.
    """
    specs = {}
    for sensor in file.sensors.values():
        modality = sensor.modality
        spec = FeaturesPrepare(sensor.features.shape[1], file.backbones[modality])
        before = known.get(modality, spec)
        if before != spec:
            raise ConfigError(str(path), *_differ(modality, spec, before))
        specs[modality] = spec
    return specs


def first_not_finite(values: NDArray[np.generic], present: NDArray[np.bool_]) -> int | None:
    """The first present row that holds NaN or infinity, if one does.

    >>> first_not_finite(np.array([[np.nan, 1.0], [1.0, 1.0], [1.0, np.inf]]), np.array([False, True, True]))
    2
    """
    if values.dtype.kind != "f":  # pixels always are; looking at them all would take a while
        return None
    finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    rows = np.flatnonzero(present & ~finite)
    return int(rows[0]) if len(rows) else None


def _differ(modality: str, spec: FeaturesPrepare, before: Prepare) -> tuple[str, str]:
    """Reason and mend of features that are not what was known before."""
    if not isinstance(before, FeaturesPrepare):
        told = f"holds {modality} as features of backbone {spec.backbone[:12]}, but {kind(before)} is fixed for it"
        return told, "give the recording itself (MCAP), or start a new first stage without [[prepare]] for it"
    if spec.backbone != before.backbone:
        told = f"its {modality} backbone is {spec.backbone[:12]}, but {before.backbone[:12]} was used before it"
        return told, "make all feature files with one backbone (the parent's, if there is a parent)"
    told = f"has {spec.width} {modality} features, but {before.width} came of the same backbone before it"
    return told, "make all feature files with one version of the program"


def _stored(sensor: SensorFeatures) -> SensorFeatures:
    """A sensor as it stands in a file."""
    values = np.asarray(sensor.features)
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and `_check` tells where
        values = np.ascontiguousarray(values, np.float16 if values.dtype == np.float16 else np.float32)
    return SensorFeatures(sensor.modality, values, np.ascontiguousarray(sensor.present, np.bool_))


def _about(path: Path, metadata: Mapping[str, str]) -> About:
    if "about" not in metadata:
        raise _refused(path, "does not say what it holds (no `about` in its metadata)")
    try:
        about = msgspec.json.decode(metadata["about"], type=About)
    except msgspec.DecodeError as error:
        raise _refused(path, f"has a damaged description ({error})") from error
    if not about.modalities:
        raise _refused(path, "names no sensors")
    return about


def _tensor(path: Path, tensors: Any, name: str, role: str) -> NDArray[Any]:
    """One tensor, of a type that its role allows. Raises RecordingError."""
    if name not in tensors.keys():  # noqa: SIM118  not a dict: it has no `in`
        raise _refused(path, f"has no tensor `{name}`")
    found = tensors.get_slice(name).get_dtype()
    if found not in STORED[role]:
        raise _refused(path, f"`{name}` is {found}, must be {' or '.join(STORED[role])}")
    return np.asarray(tensors.get_tensor(name))


def _check(path: Path, file: FeatureFile) -> None:
    """Raises RecordingError for shapes that do not fit each other and values that nothing can be learned from."""
    start = file.start_ns
    if start.ndim != 1 or not len(start):
        raise _refused(path, f"`start_ns` has shape {start.shape}, must be (n,) with at least one moment")
    if not (np.diff(start) > 0).all():
        raise _refused(path, "its moments are not in the order of time")
    if not 0 < file.hop_ns <= file.length_ns:  # as trainer.plan.WindowSettings has it
        told = f"has windows of {file.length_ns} ns every {file.hop_ns} ns; they must follow within their length"
        raise _refused(path, told)
    if file.labels.ndim != 1 or len(file.labels) not in (0, len(start)):
        raise _refused(path, f"has {len(file.labels)} labels for {len(start)} moments")
    widths: dict[str, int] = {}
    for name, sensor in file.sensors.items():
        _check_sensor(path, name, sensor, start)
        backbone = file.backbones.get(sensor.modality, "")
        if not re.fullmatch("[0-9a-f]{64}", backbone):
            raise _refused(path, f"names no backbone of {sensor.modality} by its SHA-256 (found {backbone[:12]!r})")
        width = sensor.features.shape[1]
        if widths.setdefault(sensor.modality, width) != width:
            told = f"{name} has {width} features, another {sensor.modality} has {widths[sensor.modality]}"
            raise _refused(path, told)


def _check_sensor(path: Path, name: str, sensor: SensorFeatures, start: NDArray[np.int64]) -> None:
    if not sensor.modality.isidentifier():  # it becomes the name of an encoder
        raise _refused(path, f"calls the modality of {name} {sensor.modality!r}, which is no single word")
    shape, count = sensor.features.shape, len(start)
    if len(shape) != 2 or shape[0] != count or not shape[1]:
        raise _refused(path, f"`{name}/features` has shape {shape}, must be ({count}, f)")
    if sensor.present.shape != (count,):
        raise _refused(path, f"`{name}/present` has shape {sensor.present.shape}, must be ({count},)")
    if (row := first_not_finite(sensor.features, sensor.present)) is not None:
        when = (int(start[row]) - int(start[0])) / NS
        told = f"the features of {name} are not finite, first in row {row} ({when:g} s after the first moment)"
        raise _refused(path, told, "mark such rows as not present, or look into what its backbone was given")


def _refused(path: Path, reason: str, mend: str = AGAIN) -> RecordingError:
    return RecordingError(str(path), reason, mend)
