"""What each precision of a stage's encoders costs and is worth: one table of size, time, parity, retrieval and AUROC.

Measured on a recording that no stage learned from, through the device's own code. Precisions run in turn, window by
window, so that whatever else the machine does strikes all of them; times are low quantiles, which it strikes least.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.encoder import Encoder
from export.bundle import Built, build
from export.parity import golden_inputs
from lineside import onnx_metadata
from lineside.clock import Clock
from lineside.coreset import Coreset
from lineside.metrics import auroc
from lineside.targets import PRECISIONS
from trainer import checkpoint
from trainer.compatibility import in_turn, with_defects
from trainer.data import Dataset, View, read
from trainer.evaluate import chances_among, ranks
from trainer.plan import RecordingPart
from trainer.progress import Progress, silent

RUNS, QUANTILE, FEW, CORESET = 200, 0.1, 20, 256
Key = tuple[str, str]  # modality and precision
Rows = NDArray[np.float32]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One encoder file beside its fp32 twin.

    `share` is its size relative to fp32, `weights_share` the same without the card; `faster` how many times as fast.
    `recall` is how often the other sensors' partner is found (of the same label, else the moment's own among FEW),
    `area` the AUROC of the distance to normal running of made defects; `…_change` what became of them, fp32 being 0.
    """

    modality: str
    precision: str
    bytes: int
    share: float
    weights_share: float
    latency_ms: float
    faster: float
    max_difference: float
    mean_cosine: float
    recall: float
    recall_change: float
    area: float
    area_change: float
    int8_layers: str


def bench(folder: Path, recording: Path, clock: Clock, progress: Progress = silent) -> list[Row]:
    """Every modality of a stage in every precision, on `recording`.

    Raises GateError for a file that fails its gates, and whatever trainer.data.read raises.
    """
    stage = checkpoint.load_stage(folder)
    part = RecordingPart(path=str(recording.resolve()))
    dataset = read([part], Path(), stage.windows, stage.prepare, progress, only=set(stage.prepare))
    with tempfile.TemporaryDirectory(prefix="lineside-bench-") as out:
        built = build(folder, Path(out), modalities=sorted(set(dataset.modalities.values())), progress=progress)
        encoders = {(one.modality, one.precision): Encoder.load(Path(one.file)) for one in built}
        cards = {(one.modality, one.precision): _card_bytes(Path(one.file)) for one in built}
    times = latencies(encoders, clock)
    worth = {key: _worth(encoders, key, dataset) for key in encoders}
    return [_row(one, {(o.modality, o.precision): o for o in built}, cards, times, worth) for one in built]


def latencies(encoders: Mapping[Key, Encoder], clock: Clock) -> dict[Key, float]:
    """Milliseconds of one golden window on one thread, all encoders in turn: a low quantile of RUNS."""
    windows = {key: golden_inputs(encoder.spec)[:1] for key, encoder in encoders.items()}
    taken: dict[Key, list[int]] = {key: [] for key in encoders}
    for _ in range(RUNS):
        for key, encoder in encoders.items():
            began = clock.now_ns()
            encoder.run(windows[key])
            taken[key].append(clock.now_ns() - began)
    return {key: float(np.quantile(ns, QUANTILE)) / 1e6 for key, ns in taken.items()}


def _row(
    one: Built,
    built: Mapping[Key, Built],
    cards: Mapping[Key, int],
    times: Mapping[Key, float],
    worth: Mapping[Key, tuple[float, float]],
) -> Row:
    key, twin = (one.modality, one.precision), (one.modality, PRECISIONS[0])
    return Row(
        modality=one.modality,
        precision=one.precision,
        bytes=one.bytes,
        share=one.bytes / built[twin].bytes,
        weights_share=(one.bytes - cards[key]) / (built[twin].bytes - cards[twin]),
        latency_ms=times[key],
        faster=times[twin] / times[key],
        max_difference=one.parity.max_difference,
        mean_cosine=one.parity.mean_cosine,
        recall=worth[key][0],
        recall_change=worth[key][0] - worth[twin][0],
        area=worth[key][1],
        area_change=worth[key][1] - worth[twin][1],
        int8_layers=one.int8_layers,
    )


def _worth(encoders: Mapping[Key, Encoder], key: Key, dataset: Dataset) -> tuple[float, float]:
    """Retrieval of one encoder with the others in fp32, and the AUROC of its own sensors."""
    using = {name: encoders[name, key[1] if name == key[0] else PRECISIONS[0]] for name in dataset.modalities.values()}
    seen = {sensor: _embedded(using[view.modality], view) for sensor, view in dataset.views.items()}
    labels = dataset.labels if len(dataset.labels) and (dataset.labels != "").all() else None
    mine = [pair for pair in dataset.pairs() if key[0] in {dataset.modalities[sensor] for sensor in pair}]
    found = [_recall(seen[a], seen[b], labels) for pair in mine for a, b in (pair, pair[::-1])]
    bank, normal = in_turn(dataset)
    faulty = with_defects(normal)
    mine_too = [sensor for sensor, kind in dataset.modalities.items() if kind == key[0]]
    areas = [_area(using[key[0]], *(part.views[sensor] for part in (bank, normal, faulty))) for sensor in mine_too]
    return float(np.mean(found)) if found else float("nan"), float(np.mean(areas))


def _embedded(encoder: Encoder, view: View) -> Rows:
    """(moments, dim), NaN where the sensor is absent."""
    rows = np.full((len(view.present), encoder.card.dim), np.nan, np.float32)
    rows[view.present] = encoder.encode(view.inputs[view.present]).embedding
    return rows


def _recall(asked: Rows, answered: Rows, labels: NDArray[np.str_] | None) -> float:
    both = np.isfinite(asked).all(axis=1) & np.isfinite(answered).all(axis=1)
    asked, answered = asked[both], answered[both]
    if labels is None:
        rank = ranks(asked, answered)
        return float(chances_among(rank, min(FEW, len(rank))).mean())
    return float((labels[both][(asked @ answered.T).argmax(axis=1)] == labels[both]).mean())


def _area(encoder: Encoder, bank: View, normal: View, faulty: View) -> float:
    """Of distances to normal features: moments as they were against those with a defect in this sensor."""
    known = Coreset.fit(encoder.encode(bank.inputs[bank.present]).features, CORESET)
    changed = [not np.array_equal(a, b) for a, b in zip(normal.inputs, faulty.inputs, strict=True)]
    struck = faulty.present & np.array(changed)
    usual = encoder.encode(normal.inputs[normal.present]).features
    return auroc(known.distances(usual), known.distances(encoder.encode(faulty.inputs[struck]).features))


def _card_bytes(path: Path) -> int:
    return sum(len(key) + len(text) for key, text in onnx_metadata.read(path.read_bytes(), path.name).items())


def table(rows: list[Row]) -> str:
    """As Markdown."""
    lines = [
        "| encoder | precision | KiB | of fp32 | without card | ms, 1 thread | times as fast "
        "| largest difference | mean cosine | R@1 | change, points | AUROC | change | layers in INT8 |",
        "|---|" + "---|" * 13,
    ]
    for row in rows:
        size = [f"{row.bytes / 1024:.0f}", f"{row.share:.0%}", f"{row.weights_share:.0%}"]
        time = [f"{row.latency_ms:.3f}", f"{row.faster:.2f}"]
        parity = [f"{row.max_difference:.1e}", f"{row.mean_cosine:.5f}"]
        worth = [f"{row.recall:.3f}", f"{100 * row.recall_change:+.1f}", f"{row.area:.3f}", f"{row.area_change:+.3f}"]
        cells = [row.modality, row.precision, *size, *time, *parity, *worth, row.int8_layers]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
