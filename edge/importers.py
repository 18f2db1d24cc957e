"""Foreign files into recordings: a table of what is accepted, each row with the rule that recognises it."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.foreign import datasets
from edge.foreign.base import Import, Options
from edge.foreign.frames import PICTURE_FILES, files, folder
from edge.foreign.media import SOUND_FILES, VIDEO_FILES, media
from edge.foreign.table import table
from lineside.channels import ImageFormat, SoundFormat
from lineside.clock import NS
from lineside.errors import RecordingError
from lineside.files import sync_folder
from lineside.recording import About, Label, Recorder, Recording
from lineside.windows import Samples

Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class Importer:
    """A row of the table: what it is for a person, whether a path is of that kind, and how to read it."""

    name: str
    accepts: Callable[[Path], bool]
    read: Callable[[Path, Options], Import]


@dataclass(frozen=True)
class Report:
    """What an import gave: `samples` counts single samples or frames of each sensor, `faults` the labels of faults."""

    about: About
    samples: dict[str, int]
    labels: int
    faults: int
    seconds: float
    warnings: list[str]


def _has(*names: str) -> Callable[[Path], bool]:
    return lambda path: all((path / name).exists() for name in names)


def _is_file(kinds: frozenset[str]) -> Callable[[Path], bool]:
    return lambda path: path.is_file() and path.suffix.lower() in kinds


def _has_manifest(path: Path) -> bool:
    if not (path / "manifest.csv").is_file():
        return False
    with (path / "manifest.csv").open(encoding="utf-8", errors="replace", newline="") as file:
        return {"file", "label"} <= set(next(csv.reader(file), []))


def _has_pictures(path: Path) -> bool:
    return path.is_dir() and bool(files(path, PICTURE_FILES))


def _recording(source: Path, options: Options) -> Import:
    """An MCAP recording as it is: all of a whole one, the readable part of a damaged one."""
    recording, warnings = Recording(source), list[str]()

    def stream() -> Iterator[Samples | Label]:
        yield from recording.labels()
        yield from recording.samples()
        if recording.problem:
            warnings.append(f"{source.name} {recording.problem}")

    first_ns, last_ns = recording.span_ns()
    return Import(recording.about, stream(), warnings, (last_ns - first_ns) / NS)


IMPORTERS: tuple[Importer, ...] = (
    Importer("an MCAP recording", _is_file(frozenset({".mcap"})), _recording),
    Importer("a video or sound file", _is_file(VIDEO_FILES | SOUND_FILES), media),
    Importer("a CSV file of a series", _is_file(frozenset({".csv", ".tsv"})), table),
    Importer("the av_digits data set", _has("pairs.csv", "audio.npz", "images.npz"), datasets.av_digits),
    Importer("the fan_vibration data set", _has("manifest.csv", "accel.npz"), datasets.fan_vibration),
    Importer("the skab_pump data set", _has("manifest.csv", "skab.npz"), datasets.skab_pump),
    Importer("the milling_multiview data set", _has("manifest.csv", "tool", "chip", "work"), datasets.milling),
    Importer("a folder with a manifest.csv of pictures or sounds", _has_manifest, datasets.manifest),
    Importer("a folder of JPEG or PNG pictures, with or without a sound file", _has_pictures, folder),
)


def read(source: Path, *, rate_hz: float = 0.0, split: str = "", limit: int = 0) -> Import:
    """Recognise a foreign source and begin to read it.

    `rate_hz` is for sources that do not tell it (folders 10, series) and thins a video; `split` and `limit` choose
    from a data set. Raises RecordingError for anything that is not in the table.
    """
    if not source.exists():
        raise RecordingError(str(source), "does not exist", "check the path")
    options = Options(rate_hz, split, limit)
    for importer in IMPORTERS:
        if importer.accepts(source):
            return importer.read(source, options)
    accepted = "; ".join(importer.name for importer in IMPORTERS)
    raise RecordingError(str(source), "is nothing that can be imported", f"give one of: {accepted}")


def import_recording(
    source: Path,
    out: Path,
    progress: Progress = lambda done_s, all_s: None,
    *,
    rate_hz: float = 0.0,
    split: str = "",
    limit: int = 0,
    image: ImageFormat = "jpeg",
    sound: SoundFormat = "pcm",
) -> Report:
    """Write a foreign source to the MCAP file `out`, which appears only when it is whole.

    `progress` is called with seconds done and seconds expected (0: not known). Raises RecordingError when the source
    cannot be read or gives no sample.
    """
    found = read(source, rate_hz=rate_hz, split=split, limit=limit)
    part = out.with_name(f".{out.name}.part")
    counts: Counter[str] = Counter()
    first_ns = last_ns = 0
    try:
        with Recorder(part, found.about, image, sound) as recorder:
            for item in found.stream:
                if isinstance(item, Label):
                    recorder.label(item)
                    counts["/labels"] += 1
                    counts["/faults"] += item.fault
                    continue
                recorder.write(item)
                counts[item.sensor] += len(item.data)
                first_ns, last_ns = first_ns or item.start_ns, max(last_ns, item.end_ns)
                progress((last_ns - first_ns) / NS, found.length_s)
        labels, faults = counts.pop("/labels", 0), counts.pop("/faults", 0)
        if not counts:
            raise RecordingError(str(source), "gives no sample that can be read", "try whether a player can play it")
        os.replace(part, out)
        sync_folder(out.parent)
    finally:
        part.unlink(missing_ok=True)
    return Report(found.about, dict(counts), labels, faults, (last_ns - first_ns) / NS, found.warnings)
