"""A CSV table as a series: one row a sample, a header that names the channels, perhaps a column of time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.foreign.base import EPOCH_NS, Import, Options
from edge.sensors.series import number_or_nan, split, time_column
from lineside.clock import NS
from lineside.errors import RecordingError
from lineside.recording import About
from lineside.windows import Samples

ROWS = 64  # rows in one message
LATEST_NS = 4 * 10**18  # in the year 2096
MEND = "give a CSV file with a header, numbers, and a time column or --rate"


def table(source: Path, options: Options) -> Import:
    """All columns with numbers as the channels of `series0`.

    The rate comes from the column named time or timestamp (seconds, milli-, micro-, nanoseconds or ISO dates), else
    from `rate_hz`. Raises RecordingError when there is neither, or no number at all.
    """
    header, cells = _read(source, options.limit)
    warnings: list[str] = []
    place = time_column(header)
    times = None if place is None else _times_ns([row[place] if place < len(row) else "" for row in cells])
    names, data = _channels(header, cells, place, warnings)
    if not names:
        raise RecordingError(str(source), "has no column of numbers", MEND)
    stamps, rate_hz = _stamps(source, times, len(data), options.rate_hz)
    if missing := int(np.isnan(data).sum()):
        warnings.append(f"{missing} values are not numbers and are kept as such")
    about = About(source=f"{source.name}: {', '.join(names)}", sensors={"series0": "series"})
    length_s = (stamps[-1] - stamps[0]) / NS
    return Import(about, blocks("series0", stamps, rate_hz, data), warnings, float(length_s))


def blocks(sensor: str, stamps: NDArray[np.int64], rate_hz: float, data: NDArray[np.float32]) -> Iterator[Samples]:
    """Rows (n, channels) in even blocks; a row that is more than half a period off its place begins a new block."""
    first = 0
    for row in range(1, len(data) + 1):
        expected_ns = stamps[first] + round((row - first) * NS / rate_hz)
        ended = row == len(data) or row - first == ROWS or abs(stamps[row] - expected_ns) > 0.5 * NS / rate_hz
        if ended:
            yield Samples(sensor, "series", int(stamps[first]), rate_hz, data[first:row])
            first = row


def _read(source: Path, limit: int) -> tuple[list[str], list[list[str]]]:
    try:
        lines = [line for line in source.read_text("utf-8-sig", "replace").splitlines() if line.strip()]
    except OSError as error:
        raise RecordingError(str(source), f"cannot be read ({error.strerror})", MEND) from error
    rows = [split(line) for line in lines]
    if rows and all(math.isnan(number_or_nan(cell)) for cell in rows[0]):
        header, rows = rows[0], rows[1:]
    else:
        header = [f"channel{k}" for k in range(len(rows[0]) if rows else 0)]
    if not rows:
        raise RecordingError(str(source), "has no rows", MEND)
    return header, rows[: limit or len(rows)]


def _channels(
    header: list[str], cells: list[list[str]], time_place: int | None, warnings: list[str]
) -> tuple[list[str], NDArray[np.float32]]:
    """Names and values of the columns that have numbers; a row of another length is all NaN."""
    odd = sum(len(row) != len(header) for row in cells)
    if odd:
        warnings.append(f"{odd} rows have another number of columns than the header; their values are not used")
    blank = [math.nan] * len(header)
    rows = [[number_or_nan(cell) for cell in row] if len(row) == len(header) else blank for row in cells]
    values = np.array(rows, np.float64).reshape(len(cells), len(header))
    used = [k for k in range(len(header)) if k != time_place and not np.isnan(values[:, k]).all()]
    for k, name in enumerate(header):
        if k != time_place and k not in used:
            warnings.append(f"column {name!r} has no numbers and is left out")
    with np.errstate(over="ignore"):
        return [header[k] for k in used], values[:, used].astype(np.float32)


def _times_ns(cells: list[str]) -> NDArray[np.int64] | None:
    """Times since the Unix epoch, or since EPOCH_NS for those that begin elsewhere.

    None when one is unreadable, or outside of what a recording can hold.
    """
    numbers = np.array([number_or_nan(cell) for cell in cells])
    if not np.isnan(numbers).any():
        size = float(np.abs(numbers).max())
        unit = next(unit for least, unit in ((1e17, 1), (1e14, 10**3), (1e11, 10**6), (0.0, NS)) if size >= least)
        if size * unit > LATEST_NS:
            return None
        times = np.array([round(number * unit) for number in numbers], np.int64)
        return times if numbers.min() * unit > 1e17 else times - times[0] + EPOCH_NS  # 1e17: in 1973
    try:
        moments = [datetime.fromisoformat(cell.replace("Z", "+00:00")) for cell in cells]
    except ValueError:
        return None
    utc = [moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc) for moment in moments]
    times = np.array([round(moment.timestamp() * 1e6) * 1000 for moment in utc], np.int64)
    return times if times.min() >= 0 and times.max() <= LATEST_NS else None


def _stamps(
    source: Path, times: NDArray[np.int64] | None, count: int, rate_hz: float
) -> tuple[NDArray[np.int64], float]:
    """A stamp for every row, and the rate. Raises RecordingError when there is nothing to tell them from."""
    if rate_hz > 0:
        start_ns = EPOCH_NS if times is None else int(times[0])
        return start_ns + np.round(np.arange(count) * NS / rate_hz).astype(np.int64), rate_hz
    steps = np.diff(times) if times is not None else np.zeros(0, np.int64)
    if times is None or not len(steps) or not (steps > 0).all():
        reason = "has no time column that rises" if times is not None else "has no readable time column"
        raise RecordingError(str(source), reason, MEND)
    return times, float(NS / np.median(steps))
