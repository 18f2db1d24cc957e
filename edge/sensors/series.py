"""Any sampled values from a CSV file or a named pipe: one row a sample, one column a channel."""

from __future__ import annotations

import math
import os
import select
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge.config import SensorSettings
from edge.sensors.pace import BLOCK_S, SLICE_S, Pace
from edge.sensors.timeline import Counted
from lineside.clock import NS, Clock
from lineside.errors import SensorError
from lineside.windows import Samples

TIME_NAMES = frozenset(
    {"t", "time", "timestamp", "datetime", "date", "time_s", "timestamp_s", "time_ns", "timestamp_ns"}
)
MAX_LINE = 64 * 1024


class Series:
    """Rows at `rate_hz`. A file is played in real time from `origin_ns` on, once; a pipe is read as its writer writes.

    A first row without a number is a header; its column named like a time is passed over. A value that is no number
    becomes NaN and is counted in `bad_values` (its window is then flagged). Raises SensorError, with the line, when a
    row has another number of channels than the settings say.
    """

    def __init__(self, settings: SensorSettings, clock: Clock, origin_ns: int, base: Path) -> None:
        self._settings, self._clock, self._origin_ns = settings, clock, origin_ns
        self._path = base / settings.device
        self._pace = Pace(clock)
        self._time_column: int | None = None
        self.bad_values = self.dropped = 0

    def samples(self) -> Iterator[Samples]:
        if not self._settings.rate_hz > 0:
            raise SensorError(self._settings.name, "has no rate_hz", "set rate_hz to the rows a second")
        try:
            piped = stat.S_ISFIFO(self._path.stat().st_mode)
            yield from self._from_pipe() if piped else self._from_file()
        except OSError as error:
            mend = "give a CSV file or named pipe with one row a sample"
            reason = f"cannot open {self._path} ({(error.strerror or str(error)).lower()})"
            raise SensorError(self._settings.name, reason, mend) from error

    def close(self) -> None:
        self._pace.close()

    def _from_file(self) -> Iterator[Samples]:
        rate, done = self._settings.rate_hz, 0
        with self._path.open(encoding="utf-8", errors="replace") as file:
            for rows in self._blocks(file):
                start_ns = self._origin_ns + round(done * NS / rate)
                done += len(rows)
                if not self._pace.wait(self._origin_ns + round(done * NS / rate)):
                    return
                yield self._block(start_ns, rows, jumped=False)

    def _from_pipe(self) -> Iterator[Samples]:
        rate = self._settings.rate_hz
        timeline = Counted(rate, slack_s=max(0.25, 2 / rate))
        late_ns = round(self._settings.latency_ms * 1e6)
        for rows in self._blocks(self._piped_lines()):
            measured_ns = self._clock.now_ns() - round(len(rows) * NS / rate) - late_ns
            start_ns, jumped = timeline.place(measured_ns, len(rows))
            yield replace(self._block(start_ns, rows, jumped), timing=timeline.timing)

    def _piped_lines(self) -> Iterator[str]:
        """Lines of the pipe, also past a change of writers. Raises SensorError after `stall_s` without any."""
        pipe, rest = os.open(self._path, os.O_RDWR | os.O_NONBLOCK), b""  # read and write: no end without a writer
        heard_ns = self._clock.now_ns()
        try:
            while not self._pace.closed:
                if select.select([pipe], [], [], SLICE_S)[0]:
                    heard_ns = self._clock.now_ns()
                    *lines, rest = (rest + os.read(pipe, MAX_LINE)).split(b"\n")
                    yield from (line.decode(errors="replace") for line in lines)
                elif self._clock.now_ns() - heard_ns > self._settings.stall_s * NS:
                    mend = "does the program that writes to it run?"
                    reason = f"no row from {self._path} for {self._settings.stall_s:g} s"
                    raise SensorError(self._settings.name, reason, mend)
        finally:
            os.close(pipe)

    def _blocks(self, lines: Iterator[str]) -> Iterator[list[list[float]]]:
        count = max(1, round(self._settings.rate_hz * BLOCK_S))
        rows: list[list[float]] = []
        for number, line in enumerate(lines, start=1):
            if line.strip() and (row := self._row(number, line)) is not None:
                rows.append(row)
            if len(rows) == count:
                yield rows
                rows = []
        if rows:
            yield rows

    def _row(self, number: int, line: str) -> list[float] | None:
        """The values of one line; None for a header."""
        cells = split(line)
        values = [number_or_nan(cell) for cell in cells]
        if number == 1 and all(math.isnan(value) for value in values):
            self._time_column = time_column(cells)
            return None
        if self._time_column is not None:
            del values[self._time_column : self._time_column + 1]
        if len(values) != self._settings.channels:
            reason = f"line {number} of {self._path} has {len(values)} channels, not {self._settings.channels}"
            raise SensorError(self._settings.name, reason, f"set channels = {len(values)} or mend that line")
        self.bad_values += sum(math.isnan(value) for value in values)
        return values

    def _block(self, start_ns: int, rows: list[list[float]], jumped: bool) -> Samples:
        flags = frozenset({"gap"} if jumped else ())
        data = np.array(rows, np.float32)
        return Samples(self._settings.name, "series", start_ns, self._settings.rate_hz, data, None, flags)


def split(line: str) -> list[str]:
    """Cells of a line, divided by the first of semicolon, tab or comma that it has.

    >>> split("1,5; 2"), split("1, 2")
    (['1,5', '2'], ['1', '2'])
    """
    divider = next((sign for sign in ";\t" if sign in line), ",")
    return [cell.strip().strip('"') for cell in line.split(divider)]


def number_or_nan(cell: str) -> float:
    """The number in a cell; NaN for anything else, infinity included.

    >>> number_or_nan("2.5"), number_or_nan("OVERLOAD"), number_or_nan("inf")
    (2.5, nan, nan)
    """
    try:
        value = float(cell)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def time_column(header: list[str]) -> int | None:
    """Place of the first column that is named like a time."""
    return next((place for place, name in enumerate(header) if name.lower() in TIME_NAMES), None)
