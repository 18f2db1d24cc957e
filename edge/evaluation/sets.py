"""The benchmarks of `lineside edge replay --evaluate --all`: what each needs, and what runs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.encoder import Encoder
from edge.ensemble import Ensemble, admit
from edge.evaluation import ballscrew, digits, fan, line, skab, tour
from edge.evaluation.section import Section
from edge.replay import commission
from lineside.errors import ConfigError
from lineside.recording import Recording

COMMISSIONED, SEEDS = 3, range(100, 120)  # runs of the simulated line
NO_ENCODERS = "make them with `python -m bench.encoders`, and name their folder with --encoders"


@dataclass(frozen=True)
class Benchmark:
    """One row: the folder of its data under --data, and that of its encoders under --encoders; "" for none."""

    data: str
    encoders: str
    run: Callable[[Path, Path], list[Section]]


def _line(data: Path, encoders: Path) -> list[Section]:
    loaded = load(encoders)
    recording = Recording(encoders / "commissioning.mcap")
    known = commission(line.config(COMMISSIONED), loaded, recording).ensemble(
        loaded.encoders, line.config(COMMISSIONED)
    )
    return [tour.evaluate(loaded, recording), line.confusion(known, SEEDS, workers=os.cpu_count() or 1)]


SETS: dict[str, Benchmark] = {
    "line": Benchmark("", "line", _line),
    "skab": Benchmark("skab_pump", "", lambda data, _: [skab.evaluate(data)]),
    "fan": Benchmark("fan_vibration", "", lambda data, _: [fan.evaluate(data)]),
    "ballscrew": Benchmark("ballscrew_camera", "", lambda data, _: [ballscrew.evaluate(data)]),
    "digits": Benchmark("av_digits", "digits", lambda data, encoders: [digits.evaluate(data, load(encoders).encoders)]),
}


def run(data: Path, encoders: Path, only: Sequence[str]) -> Iterator[Section]:
    """The sections of all benchmarks, or of those named; one whose data or encoders are not there says so."""
    if unknown := [name for name in only if name not in SETS]:
        raise ConfigError(unknown[0], "is no benchmark", f"known are {', '.join(SETS)}")
    for name in only or SETS:
        row = SETS[name]
        lacks = _lacks(row, data, encoders)
        if lacks:
            yield Section(name, f"Not run: {lacks}.")
        else:
            yield from row.run(data / row.data, encoders / row.encoders)


def load(folder: Path) -> Ensemble:
    """The encoders of a folder, each proved by its golden vectors. Raises ReleaseError for one that is refused."""
    encoders: dict[str, Encoder] = {}
    for path in sorted(folder.glob("*.onnx")):
        encoders = admit(Encoder.load(path), encoders)
    return Ensemble(encoders)


def _lacks(row: Benchmark, data: Path, encoders: Path) -> str:
    if row.data and not (data / row.data).is_dir():
        return f"{data / row.data} is not there"
    if row.encoders and not any((encoders / row.encoders).glob("*.onnx")):
        return f"no encoders in {encoders / row.encoders}; {NO_ENCODERS}"
    return ""
