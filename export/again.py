"""Labelled alarms through a candidate: which would it raise again, by the device's own pipeline and thresholds?"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from edge.config import AlarmSettings, DeviceConfig, DeviceSettings, Modality, SensorSettings, WindowSettings
from edge.ensemble import Ensemble
from edge.evaluation.sets import load
from edge.pipeline import Pipeline
from edge.replay import commission, recorded, through
from export.bundle import build
from lineside.errors import LinesideError, RecordingError
from lineside.evidence import Again, Labelled, Replayed, labelled_in
from lineside.messages import Alarm
from lineside.recording import Recording
from trainer import checkpoint
from trainer.progress import Progress, silent

NEEDED = ("p_limit", "raise_count", "of")  # of an anomaly's thresholds: those that raised it


def replay(
    stage: Path, version: int, normal: Path, labelled: Path, time_ns: int, progress: Progress = silent
) -> Replayed:
    """Play every labelled alarm to the encoders of a stage, commissioned on `normal`.

    Raises LinesideError when the stage may not be exported, when `normal` is too little, or for a damaged list.
    """
    rows, known = labelled_in(labelled), Recording(normal)
    if not rows:
        mend = "give the folder that `lineside hub labels` names"
        raise RecordingError(str(labelled), "holds no labelled alarm", mend)
    with TemporaryDirectory(prefix="lineside-labels-") as folder:
        build(stage, Path(folder), version, ("fp32",), (), progress)
        encoders = load(Path(folder))
    ensemble = commission(_device(known), encoders, known).ensemble(encoders.encoders, _device(known))
    found = []
    for number, row in enumerate(rows):
        found.append(_again(row, labelled, known, ensemble))
        progress("labelled alarms", number + 1, len(rows))
    name = checkpoint.load_stage(stage).name
    return Replayed(version=version, stage=name, time_ns=time_ns, normal=normal.name, alarms=found)


def _again(row: Labelled, folder: Path, known: Recording, ensemble: Ensemble) -> Again:
    raised, why = None, _why_not(row, folder)
    if not why:
        try:
            raised = _raised(row, Recording(folder / row.recording), known, ensemble)
        except LinesideError as error:
            why = str(error)
    return Again(device=row.device, key=row.key, real=row.real, kind=row.kind, raised=raised, why=why)


def _why_not(row: Labelled, folder: Path) -> str:
    if not row.recording or not (folder / row.recording).is_file():
        return "the hub has no recording of it"
    if row.alarm != "anomaly":
        return f"an alarm of kind {row.alarm} does not come from some seconds and the encoders alone"
    return "" if all(name in row.limits for name in NEEDED) else "its thresholds are not known"


def _raised(row: Labelled, recording: Recording, known: Recording, ensemble: Ensemble) -> bool:
    """Whether an anomaly is raised in the alarm's own seconds."""
    if recording.about.station != known.about.station:
        told = f"is of station {recording.about.station!r}, normal running of {known.about.station!r}"
        raise RecordingError(recording.path.name, told, "certify on a recording of its station too")
    settings = AlarmSettings(
        p_limit=row.limits["p_limit"],
        p_clear=max(AlarmSettings().p_clear, row.limits["p_limit"]),
        raise_count=round(row.limits["raise_count"]),
        of=round(row.limits["of"]),
    )
    config = _device(known, settings)
    pipeline = Pipeline(config)
    pipeline.ensemble = ensemble
    alarms = [each for each in through(pipeline, recorded(config, recording)) if isinstance(each, Alarm)]
    return any(
        alarm.kind == "anomaly" and alarm.state == "raised" and row.start_ns <= alarm.time_ns <= row.end_ns
        for alarm in alarms
    )


def _device(known: Recording, settings: AlarmSettings = AlarmSettings()) -> DeviceConfig:  # noqa: B008  frozen
    """A device with the sensors of a recording."""
    about = known.about
    sensors = [
        SensorSettings(name=name, modality=msgspec.convert(kind, Modality), source="replay", device=known.path.name)
        for name, kind in about.sensors.items()
    ]
    windows = WindowSettings(length_s=about.length_s, hop_s=min(about.hop_s, about.length_s))
    device = DeviceSettings(id="replay", site="replay", station=about.station)
    return DeviceConfig(device=device, sensors=sensors, windows=windows, alarm=settings)
