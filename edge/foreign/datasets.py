"""The data sets under shared/data/dev: real digits, sounds, pictures and series, by their manifests.

Their items were not recorded one after the other; an import lays them so, each from a whole second on, so that
windows cut on whole seconds hold one item. Labels come from the manifest.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.foreign.base import EPOCH_NS, SOUND_HZ, Import, Options, frame, resized, size_within
from edge.foreign.frames import PICTURE_FILES, picture
from edge.foreign.media import SOUND_FILES, sound
from edge.foreign.table import blocks
from lineside.clock import NS
from lineside.errors import RecordingError
from lineside.recording import About, Label
from lineside.windows import Samples

Row = dict[str, str]
STILL_HZ = 4  # how often a still picture is shown in its second
DIGIT_PX = 96
WELL = frozenset({"normal", "ok", "good", "healthy"})  # what manifests call a thing without a fault
ROOM = 12  # level of the noise under a clip of sound: no microphone is digitally silent


def av_digits(source: Path, options: Options) -> Import:
    """Pairs of a written and a spoken digit, a second each, in a fixed shuffled order (the file is sorted by digit)."""
    rows = _rows(source, "pairs.csv")
    rows = [rows[k] for k in np.random.default_rng(0).permutation(len(rows))]
    rows = _chosen(source, rows, options.split)[: options.limit or len(rows)]
    with np.load(source / "audio.npz") as audio, np.load(source / "images.npz") as shown:
        clips, offsets, images = audio["samples"], audio["offsets"], shown["images"]

    def item(row: Row, start_ns: int, rng: np.random.Generator) -> Iterator[Samples]:
        clip = int(row["audio_idx"])
        digit = np.repeat(images[int(row["image_idx"])][..., None], 3, axis=2)
        yield from still("cam0", start_ns, resized(digit, (DIGIT_PX, DIGIT_PX)), rng)
        yield spoken(start_ns, clips[offsets[clip] : offsets[clip + 1]], rng)

    sensors = {"cam0": "camera", "mic0": "microphone"}
    return _seconds(source, rows, sensors, "label", item)


def fan_vibration(source: Path, options: Options) -> Import:
    """Snippets of one second of a 3-axis accelerometer at 200 Hz; rows that only pad a snippet are left out."""
    rows = _some(_chosen(source, _rows(source, "manifest.csv"), options.split), options.limit)
    with np.load(source / "accel.npz") as accel:
        snippets, rate_hz = accel["X"], float(accel["fs_hz"])

    def item(row: Row, start_ns: int, rng: np.random.Generator) -> Iterator[Samples]:
        yield Samples("vib0", "series", start_ns, rate_hz, snippets[int(row["idx"])][: int(row["n_samples"])])

    return _seconds(source, rows, {"vib0": "series"}, "label", item, faults={"anomaly"})


def milling(source: Path, options: Options) -> Import:
    """Three photographs of one milling step: tool, chips and workpiece, as three cameras."""
    rows = _some(_chosen(source, _rows(source, "manifest.csv"), options.split), options.limit)
    views = ("tool", "chip", "work")
    warnings: list[str] = []
    sizes: dict[str, tuple[int, int]] = {}

    def item(row: Row, start_ns: int, rng: np.random.Generator) -> Iterator[Samples]:
        for view in views:
            yield from _photograph(view, source / row[view], start_ns, rng, sizes, warnings)

    return _seconds(source, rows, dict.fromkeys(views, "camera"), "label", item, warnings=warnings, faults={"dulled"})


def manifest(source: Path, options: Options) -> Import:
    """Any folder whose manifest.csv has the columns file and label: pictures (a second each) or clips of sound."""
    listed = _rows(source, "manifest.csv")
    rows = _some(_chosen(source, listed, options.split), options.limit)
    warnings: list[str] = []
    label = "label_name" if "label_name" in rows[0] else "label"
    faults = _faults({row[label] for row in listed})
    if Path(rows[0]["file"]).suffix.lower() in PICTURE_FILES:
        sizes: dict[str, tuple[int, int]] = {}

        def shown(row: Row, start_ns: int, rng: np.random.Generator) -> Iterator[Samples]:
            yield from _photograph("cam0", source / row["file"], start_ns, rng, sizes, warnings)

        return _seconds(source, rows, {"cam0": "camera"}, label, shown, warnings=warnings, faults=faults)

    def heard(row: Row, start_ns: int, rng: np.random.Generator) -> Iterator[Samples]:
        yield from _clip(source / row["file"], start_ns, _seconds_of(row), rng, warnings)

    seconds = [_seconds_of(row) for row in rows]
    return _seconds(source, rows, {"mic0": "microphone"}, label, heard, seconds, warnings, faults)


def skab_pump(source: Path, options: Options) -> Import:
    """Experiments on a pump, 8 channels at 1 Hz, one after the other with two minutes between them."""
    rows = _chosen(source, _rows(source, "manifest.csv"), options.split)[: options.limit or None]
    with np.load(source / "skab.npz") as held:
        data, times, ids, anomaly = held["X"], held["time"], held["file_id"], held["anomaly"]

    def stream() -> Iterator[Samples | Label]:
        start_ns = EPOCH_NS
        for row in rows:
            here = np.flatnonzero(ids == int(row["file_id"]))
            stamps = start_ns + (times[here] - times[here[0]]).astype(np.int64) * NS
            yield from _runs(stamps, anomaly[here], row["label"])
            yield from blocks("pump0", stamps, 1.0, data[here])
            start_ns = (int(stamps[-1]) // (60 * NS) + 3) * 60 * NS

    about = About(source=source.name, sensors={"pump0": "series"}, length_s=60.0, hop_s=10.0)
    return Import(about, stream(), [], float(sum(int(row["n_rows"]) + 150 for row in rows)))


def still(sensor: str, start_ns: int, shown: NDArray[Any], rng: np.random.Generator) -> Iterator[Samples]:
    """One picture for one second, as a camera would see it: with a little noise, or a device would call it frozen."""
    for k in range(STILL_HZ):
        noise = rng.integers(-3, 4, shown.shape, np.int16)
        seen = np.clip(shown.astype(np.int16) + noise, 0, 255).astype(np.uint8)
        yield frame(sensor, start_ns + k * NS // STILL_HZ, float(STILL_HZ), seen)


def spoken(start_ns: int, clip: NDArray[np.int16], rng: np.random.Generator) -> Samples:
    """A clip of 8 kHz in the middle of one second at 16 kHz, over the noise of a room; a longer one is cut."""
    spectrum = np.fft.rfft(clip.astype(np.float64))
    wave = 2 * np.fft.irfft(spectrum, 2 * len(clip))[:SOUND_HZ]
    heard = rng.normal(0, ROOM, SOUND_HZ)
    first = (SOUND_HZ - len(wave)) // 2
    heard[first : first + len(wave)] += wave
    return Samples("mic0", "microphone", start_ns, float(SOUND_HZ), np.clip(heard, -32_768, 32_767).astype(np.int16))


def _seconds(
    source: Path,
    rows: list[Row],
    sensors: dict[str, str],
    label: str,
    item: Callable[[Row, int, np.random.Generator], Iterator[Samples]],
    seconds: list[int] | None = None,
    warnings: list[str] | None = None,
    faults: AbstractSet[str] = frozenset(),
) -> Import:
    """Items one after the other, `seconds` each (1 when not given), every one with its label; `faults` names labels."""
    lengths = seconds or [1] * len(rows)

    def stream() -> Iterator[Samples | Label]:
        rng, start_ns = np.random.default_rng(1), EPOCH_NS
        for row, length in zip(rows, lengths, strict=True):
            yield Label(start_ns, start_ns + length * NS, row[label], fault=row[label] in faults)
            yield from item(row, start_ns, rng)
            start_ns += length * NS

    about = About(source=source.name, sensors=sensors, length_s=1.0, hop_s=1.0)
    return Import(about, stream(), warnings if warnings is not None else [], float(sum(lengths)))


def _photograph(
    sensor: str,
    path: Path,
    start_ns: int,
    rng: np.random.Generator,
    sizes: dict[str, tuple[int, int]],
    warnings: list[str],
) -> Iterator[Samples]:
    """One picture for one second, at the size of the sensor's first one; nothing, and a warning, if unreadable."""
    shown = picture(path)
    if shown is None:
        warnings.append(f"{path.name} cannot be read as a picture and is left out")
        return
    size = sizes.setdefault(sensor, size_within(shown.shape[1], shown.shape[0]))
    yield from still(sensor, start_ns, resized(shown, size), rng)


def _seconds_of(row: Row) -> int:
    """Whole seconds that a clip is given; up to a quarter of a second at its end is cut."""
    return max(1, math.ceil(float(row.get("duration_s") or 1) - 0.25))


def _clip(path: Path, start_ns: int, seconds: int, rng: np.random.Generator, warnings: list[str]) -> Iterator[Samples]:
    """`seconds` of a clip of sound, over the noise of a room; nothing, and a warning, if unreadable."""
    if path.suffix.lower() not in SOUND_FILES:
        warnings.append(f"{path.name} is neither picture nor sound and is left out")
        return
    try:
        for block in sound(path, warnings):
            heard = block.data.astype(np.float64) + rng.normal(0, ROOM, len(block.data))
            data = np.clip(heard, -32_768, 32_767).astype(np.int16)
            at_ns = start_ns + block.start_ns - EPOCH_NS
            whole = Samples("mic0", "microphone", at_ns, float(SOUND_HZ), data)
            if len((heard_in := whole.between(start_ns, start_ns + seconds * NS)).data):
                yield heard_in
    except RecordingError as error:
        warnings.append(f"{path.name} {error.reason} and is left out")


def _runs(stamps: NDArray[np.int64], anomaly: NDArray[Any], name: str) -> Iterator[Label]:
    """Labels of the runs of anomalous and normal rows of one experiment."""
    edges = [0, *(np.flatnonzero(np.diff(anomaly)) + 1).tolist(), len(anomaly)]
    for first, last in itertools.pairwise(edges):
        start_ns, end_ns, fault = int(stamps[first]), int(stamps[last - 1]) + NS, bool(anomaly[first])
        yield Label(start_ns, end_ns, name if fault else "normal", fault=fault)


def _faults(labels: set[str]) -> set[str]:
    """Which of a manifest's labels tell of a fault: all but the well ones where there are such, 1 where 0 is the other.

    Classes that are neither (kinds of sound, say) tell of none. -1 is what nobody could decide: no normal running.
    """
    names = WELL | {"0"} if labels <= {"-1", "0", "1"} else WELL
    well = {label for label in labels if label.strip().casefold() in names}
    return labels - well if well else set()


def _rows(source: Path, name: str) -> list[Row]:
    try:
        with (source / name).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise RecordingError(str(source / name), f"cannot be read ({error.strerror})", "check the folder") from error
    if not rows:
        raise RecordingError(str(source / name), "has no rows", "check the manifest")
    return rows


def _chosen(source: Path, rows: list[Row], wanted: str) -> list[Row]:
    """The rows of one split, all for none. Raises RecordingError naming the splits there are."""
    chosen = [row for row in rows if not wanted or row.get("split") == wanted]
    if not chosen:
        known = ", ".join(sorted({row.get("split") or "" for row in rows}))
        raise RecordingError(str(source), f"has no split {wanted!r}", f"choose one of: {known}")
    return chosen


def _some(rows: list[Row], limit: int) -> list[Row]:
    """At most `limit` rows, spread evenly over all of them, in order: manifests are sorted by class or by time."""
    if not 0 < limit < len(rows):
        return rows
    return [rows[k * len(rows) // limit] for k in range(limit)]
