"""What recordings are there, how much of each modality they hold, and which a line of stages has not learned from.

A recording is known by its bytes: a copy or another name is not new, one whose labels were changed is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from lineside.clock import NS
from lineside.errors import RecordingError
from lineside.recording import Label, Recording

GAP_NS = 10 * NS  # two messages that lie further apart do not say that anything was captured between them
CHUNK = 1 << 20


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One recording that can be read: `minutes` of each modality without faults, summed over its sensors.

    `moments` is about how many it gives, `faults` counts confirmed labels of faults, `problem` says what could not
    be read.
    """

    path: str
    sha256: str
    begin_ns: int
    end_ns: int
    minutes: dict[str, float]
    moments: int
    faults: int = 0
    problem: str = ""


class Glance(msgspec.Struct, frozen=True):
    """What a file was when it was last looked at: one of the same size and time is not read again.

    `refused` says why nothing of it can be used.
    """

    size: int
    mtime_ns: int
    found: Found | None = None
    refused: str = ""


def look(folders: Sequence[Path], before: Mapping[str, Glance], settled_ns: int) -> dict[str, Glance]:
    """A glance at every MCAP file in and below `folders` that was not changed since `settled_ns`, by path.

    Hidden files are copies that are not finished (rsync), and are left out.
    """
    glances = {}
    for path in _files(folders):
        about = path.stat()
        if about.st_mtime_ns > settled_ns:
            continue
        known = before.get(str(path))
        same = known and (known.size, known.mtime_ns) == (about.st_size, about.st_mtime_ns)
        glances[str(path)] = known if known and same else _glance(path, about.st_size, about.st_mtime_ns)
    return glances


def readable(glances: Mapping[str, Glance]) -> list[Found]:
    """What can be used, each content once, in the order of capture."""
    by_content = {glance.found.sha256: glance.found for glance in glances.values() if glance.found}
    return sorted(by_content.values(), key=lambda found: (found.begin_ns, found.sha256))


def captured_s(starts_ns: Sequence[int], faults: Sequence[Label]) -> float:
    """Seconds between messages that begin at `starts_ns`, without those that begin while a fault lasts.

    >>> round(captured_s([0, NS, 2 * NS, 500 * NS, 501 * NS], []), 1)
    3.0
    >>> captured_s([0, NS, 2 * NS], [Label(NS, 2 * NS, "leak", fault=True)])
    1.0
    """
    well = [not any(fault.start_ns <= start < fault.end_ns for fault in faults) for start in starts_ns]
    pairs = zip(starts_ns, starts_ns[1:], well, strict=False)
    return sum(after - start for start, after, good in pairs if good and 0 <= after - start <= GAP_NS) / NS


def _files(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        if not folder.is_dir():
            raise RecordingError(str(folder), "is no folder", "make it, or mount it")
        for path in sorted(folder.rglob("*.mcap")):
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
                yield path.resolve()


def _glance(path: Path, size: int, mtime_ns: int) -> Glance:
    try:
        return Glance(size, mtime_ns, _read(path))
    except RecordingError as error:
        return Glance(size, mtime_ns, refused=error.reason)


def _read(path: Path) -> Found:
    recording = Recording(path)
    begin_ns, end_ns = recording.span_ns()
    problem, labels = recording.problem, recording.labels()
    starts: dict[str, list[int]] = {}
    for block in recording.blocks():
        starts.setdefault(block.topic.lstrip("/"), []).append(block.start_ns)
    minutes: dict[str, float] = {}
    for sensor, modality in recording.about.sensors.items():
        faults = [label for label in labels if label.fault and label.sensor in ("", sensor)]
        seconds = captured_s(sorted(starts.get(sensor, [])), faults)
        minutes[modality] = minutes.get(modality, 0.0) + round(seconds / 60, 2)
    return Found(
        path=str(path),
        sha256=_sha256(path),
        begin_ns=begin_ns,
        end_ns=end_ns,
        minutes=minutes,
        moments=round((end_ns - begin_ns) / NS / recording.about.hop_s),
        faults=sum(label.fault and label.confirmed for label in labels),
        problem=problem,
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
