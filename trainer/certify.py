"""From stage folders and recordings to what trainer.compatibility measures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lineside.errors import ConfigError, RecordingError
from lineside.fusion import MIN_MOMENTS
from lineside.recording import Recording
from trainer import checkpoint, compatibility
from trainer.checkpoint import Stage
from trainer.compatibility import Trial, Version
from trainer.data import Dataset, named, read
from trainer.plan import RecordingPart
from trainer.progress import Progress, silent

MOST_MOMENTS = 1200


def version(folder: Path) -> Version:
    """A stage's encoders, whatever its gates say. Raises ConfigError when the folder is no finished stage."""
    stage = checkpoint.load_stage(folder)
    return _version(folder, stage)


def field(folder: Path, against: Sequence[Path]) -> list[Version]:
    """The older stages that one is to be certified beside. Raises ConfigError for one of another embedding space."""
    stage, olds = checkpoint.load_stage(folder), []
    for old in against:
        known = checkpoint.load_stage(old)
        if known.space != stage.space:
            told = f"is of space {known.space}, {stage.name} of {stage.space}: their embeddings cannot be compared"
            raise ConfigError(str(old), told, "name stages of one line of parents")
        if known.name == stage.name:
            raise ConfigError(str(old), f"is {stage.name} itself", "name a stage that is still in the field")
        olds.append(_version(old, known))
    return olds


def trial(
    folder: Path, recording: RecordingPart, faulty: Path | None, progress: Progress = silent
) -> tuple[Trial, list[str]]:
    """Moments to certify the stage in `folder` on, and warnings.

    Of what the stage itself learned from, only moments that it held out are judged; the rest teaches what is normal, as
    a device is commissioned. Raises RecordingError when too little is left, or `faulty` has no label of a fault.
    """
    stage = checkpoint.load_stage(folder)
    every, wrong = _read(stage, recording, progress), _faulty(stage, faulty, progress)
    warnings = list(every.warnings)
    if every.sha256 == stage.data_sha256:
        learned, held = every.split(stage.plan.held_out)
        bank, normal = every.only(learned[-MOST_MOMENTS:]), every.only(held)
        warnings.append(f"{recording.path}: {stage.name} learned from it; only {len(held)} held-out moments are judged")
    else:
        bank, normal = compatibility.in_turn(every)
    for sensor, view in bank.views.items():
        if (count := int(view.present.sum())) < MIN_MOMENTS:
            told = f"leaves {count} windows of {sensor} to learn normal running from, at least {MIN_MOMENTS} are needed"
            raise RecordingError(recording.path, told, f"record at least {4 * MIN_MOMENTS} moments of normal running")
    labels = stage.plan.losses.labels
    return Trial(bank, normal, compatibility.with_defects(normal) if wrong is None else wrong, labels), warnings


def _faulty(stage: Stage, recording: Path | None, progress: Progress) -> Dataset | None:
    if recording is None:
        return None
    labels = [label for label in Recording(recording).labels() if label.fault and label.confirmed]
    every = _read(stage, RecordingPart(str(recording)), progress, faults=True)
    names = named(labels, every.start_ns + every.length_ns // 2, faults=True)
    rows = np.flatnonzero([bool(name) for name in names])
    if not len(rows):
        raise RecordingError(str(recording), "has no label of a fault", "label it, or leave out --faulty")
    return every.only(rows)


def _read(stage: Stage, part: RecordingPart, progress: Progress, faults: bool = False) -> Dataset:
    return read([part], Path(), stage.windows, stage.prepare, progress, set(stage.prepare), faults)


def _version(folder: Path, stage: Stage) -> Version:
    encoders = checkpoint.load_tensors(folder, stage).encoders
    return Version(stage.name, encoders, checkpoint.identities(stage, encoders))
