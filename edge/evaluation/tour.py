"""Every fault of the table in turn over one run of the simulated line, as a labelled recording would hold them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge.config import DeviceConfig
from edge.ensemble import Ensemble
from edge.evaluation import line, recorded
from edge.evaluation.line import START_NS
from edge.evaluation.section import Section
from edge.faults import FAULTS, Injector
from edge.pipeline import Pipeline
from edge.replay import commission, simulated
from lineside.clock import NS
from lineside.recording import Label, Recording
from lineside.windows import Samples

LEAD_S, FAULT_S, PAUSE_S = 300, 15, 25  # well at first; then each fault, and well again


def evaluate(ensemble: Ensemble, commissioning: Recording, seed: int = 77) -> Section:
    """Faults seen by a device with the encoders of `ensemble`, commissioned on a recording of another run."""
    config = line.config(seed)
    known = commission(config, ensemble, commissioning)
    pipeline = Pipeline(config)
    pipeline.ensemble = known.ensemble(ensemble.encoders, config)
    found = recorded.run(config, pipeline, _stream(config), labels())
    return recorded.evaluate(found, config, pipeline.ensemble, known, "Simulated line: every fault in turn")


def labels() -> list[Label]:
    """When which fault is there."""
    starts = [START_NS + (LEAD_S + k * (FAULT_S + PAUSE_S)) * NS for k in range(len(FAULTS))]
    return [Label(start, start + FAULT_S * NS, kind, fault=True) for start, kind in zip(starts, FAULTS, strict=True)]


def _stream(config: DeviceConfig) -> Iterator[Samples]:
    injector, left = Injector(), labels()
    seconds = LEAD_S + len(left) * (FAULT_S + PAUSE_S)
    for samples in simulated(config, Path(), START_NS, seconds):
        while left and samples.start_ns >= left[0].start_ns:
            label = left.pop(0)
            injector.start(label.label, label.end_ns)
        yield injector.apply(samples)
