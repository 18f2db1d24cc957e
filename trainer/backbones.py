"""Frozen backbones of somebody else's making: recordings in, feature files out, on which heads alone are trained.

A backbone is any ONNX file with one input, prepared windows (batch, *shape) as lineside.features makes them, and a
first output of one row a window; what follows the row is flattened. A fixed batch of 1 is fed one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lineside.errors import ConfigError
from lineside.features import Prepare
from lineside.files import sha256
from trainer.data import Dataset, read
from trainer.feature_files import FeatureFile, SensorFeatures
from trainer.plan import RecordingPart, WindowSettings
from trainer.progress import Progress, silent

CHUNK = 64
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class Backbone:
    """One frozen network and the SHA-256 of its file."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError when the file is missing, is no ONNX that runs here, or has more than one input."""
        self.path = path
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(str(path), f"cannot be read ({error.strerror})", "check the path") from error
        self.sha256 = sha256(data)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=_providers())
        except Exception as error:  # the runtime raises classes of its own that share no base
            raise ConfigError(
                str(path), f"ONNX Runtime refuses it ({error})", "export it again for opset 17"
            ) from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in TYPES:
            found = ", ".join(f"{each.name} {each.type}" for each in inputs)
            told = f"takes {found}; a backbone takes one input, of {', '.join(TYPES)}"
            raise ConfigError(str(path), told, "export it with the picture or the spectrogram as its only input")
        self._input, self._output = inputs[0], self._session.get_outputs()[0].name

    def features(self, windows: NDArray[np.generic]) -> NDArray[np.float32]:
        """Features (n, f) of prepared windows (n, *shape). Raises ConfigError when it does not take them."""
        at_once = 1 if self._input.shape[:1] == [1] else CHUNK
        parts = [self._run(windows[at : at + at_once]) for at in range(0, len(windows), at_once)]
        return np.concatenate(parts)

    def _run(self, windows: NDArray[np.generic]) -> NDArray[np.float32]:
        given = windows.astype(TYPES[self._input.type], copy=False)
        try:
            found: Any = self._session.run([self._output], {self._input.name: given})[0]
        except Exception as error:  # as above
            told = f"takes {self._input.shape}, not windows of shape {windows.shape[1:]} ({error})"
            mend = "give [[prepare]] for its modality in --plan, so that windows have its shape"
            raise ConfigError(str(self.path), told, mend) from error
        if found.ndim < 1 or len(found) != len(windows):
            told = f"gave an output of shape {found.shape} for {len(windows)} windows"
            raise ConfigError(str(self.path), told, "export it with one row of features a window")
        return np.asarray(found, np.float32).reshape(len(windows), -1)


def featured(
    recording: Path,
    backbones: Mapping[str, Path],
    windows: WindowSettings = WindowSettings(),  # noqa: B008  frozen
    prepare: Mapping[str, Prepare] | None = None,
    progress: Progress = silent,
) -> FeatureFile:
    """What `backbones`, by modality, make of a recording; other modalities are left out.

    Windows that carry a flag of quality or the label of a fault are not present in it. Raises ConfigError for a
    modality that the recording lacks, and what `Backbone` and trainer.data.read raise.
    """
    known = {name: Backbone(path) for name, path in backbones.items()}
    part = RecordingPart(str(recording.resolve()))
    dataset = read([part], Path(), windows, dict(prepare or {}), progress, only=set(known))
    if missing := known.keys() - dataset.modalities.values():
        told = f"has no {', '.join(sorted(missing))}"
        raise ConfigError(str(recording), told, "leave out --backbone for it, or give another recording")
    sensors = {sensor: _sensor(dataset, sensor, known, progress) for sensor in dataset.views}
    hashes = {name: backbone.sha256 for name, backbone in known.items()}
    return FeatureFile(sensors, hashes, dataset.start_ns, dataset.length_ns, dataset.hop_ns, dataset.labels)


def _sensor(dataset: Dataset, sensor: str, known: Mapping[str, Backbone], progress: Progress) -> SensorFeatures:
    view = dataset.views[sensor]
    progress(f"features of {sensor}", 0, int(view.present.sum()))
    found = known[view.modality].features(view.inputs[view.present])
    features = np.zeros((len(dataset), found.shape[1]), np.float32)
    features[view.present] = found
    progress(f"features of {sensor}", len(found), len(found))
    return SensorFeatures(view.modality, features, view.present)


def _providers() -> list[str]:
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    return [name for name in wanted if name in onnxruntime.get_available_providers()]
