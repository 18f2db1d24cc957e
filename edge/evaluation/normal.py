"""What normal is: the section that commissioning prints and draws."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edge.commissioning import Commissioning
from edge.config import DeviceConfig
from edge.ensemble import Ensemble
from edge.evaluation.section import Cell, Plot, Section, Table
from lineside.clock import NS
from lineside.conformal import Calibration
from lineside.fusion import Normal
from lineside.projections import Space

MINUTE_NS = 60 * NS
BINS = 60


def describe(known: Commissioning, ensemble: Ensemble, config: DeviceConfig) -> Section:
    """Normal running of a device that has learned it. Raises ValueError for an ensemble that has not."""
    if ensemble.normal is None:
        raise ValueError("normal running has not been learned")
    minutes = (known.start_ns[-1] - known.start_ns[0]) / MINUTE_NS
    alpha = config.alarm.p_limit
    whole = ensemble.normal.fused[max(ensemble.normal.fused, key=len)]
    return Section(
        "What normal is",
        f"{len(known.moments)} moments over {minutes:.1f} min. {whole.told(alpha)}",
        tables=[_scores(ensemble.normal, alpha), *_states(ensemble, config)],
        plots=_plots(known, ensemble, ensemble.normal),
    )


def _scores(normal: Normal, alpha: float) -> Table:
    """Every calibration: how many scores, their middle, and from where on p <= alpha."""
    kinds: list[tuple[str, Calibration]] = [
        *((f"distance of {sensor}", known) for sensor, known in normal.singles.items()),
        *((f"disagreement of {'+'.join(pair)}", known) for pair, known in normal.pairs.items()),
        *((f"evidence of {'+'.join(sorted(members))}", known) for members, known in normal.fused.items()),
    ]
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            len(known.scores),
            float(np.median(known.scores)),
            float(np.quantile(known.scores, 1 - alpha)),
            known.realised_upper(alpha) if known.supports(alpha) else None,
        )
        for name, known in kinds
    ]
    columns = ("score", "windows", "median", f"exceeded by {alpha:.2%}", f"rate of p <= {alpha:g} is at most (95 %)")
    return Table("Scores of normal running, each by what the rest of it taught.", columns, rows)


def _states(ensemble: Ensemble, config: DeviceConfig) -> list[Table]:
    rows: list[tuple[Cell, ...]] = []
    for state in config.device.states:
        learned = ensemble.states.get(state)
        count = len(learned.fused[max(learned.fused, key=len)].scores) if learned else 0
        rows.append(
            (state, count, "judged by itself" if learned else "not learned: too few moments, nothing is judged")
        )
    return [Table("States of the station.", ("state", "moments", ""), rows)] if rows else []


def _plots(known: Commissioning, ensemble: Ensemble, normal: Normal) -> list[Plot]:
    plots = [
        _histogram("distance to the coreset", "distance, whitened", {s: c.scores for s, c in normal.singles.items()})
    ]
    if normal.pairs:
        cosines = {"+".join(pair): -c.scores for pair, c in normal.pairs.items()}
        plots.append(_histogram("agreement", "cosine", cosines))
    return [*plots, _course(known, ensemble)]


def _histogram(title: str, x: str, values: Mapping[str, NDArray[np.float64]]) -> Plot:
    low, high = min(v.min() for v in values.values()), max(v.max() for v in values.values())
    edges = np.linspace(low, max(high, low + 1e-9), BINS + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    return Plot(
        f"normal running: {title}",
        x,
        "share of windows",
        {name: (middle, np.histogram(each, edges)[0] / len(each)) for name, each in values.items()},
    )


def _course(known: Commissioning, ensemble: Ensemble) -> Plot:
    """The axis along which a sensor's embeddings differ most, over time: a trend here is no normal running yet."""
    minutes = (np.array(known.start_ns) - known.start_ns[0]) / MINUTE_NS
    lines = {}
    for sensor, encoded in known.encoded(ensemble.encoders).items():
        there = np.isfinite(encoded.embedding).all(axis=1)
        space = Space.fit(encoded.embedding[there])
        first = (encoded.embedding[there] - space.mean) @ space.axes[:, 0] / space.scale[0]
        lines[sensor] = (minutes[there], np.asarray(first, np.float64))
    return Plot("normal running: first principal axis of embeddings", "minutes", "standard deviations", lines)
