"""Who is blamed for what: a confusion matrix of edge.triage on the simulated line, by the device's own code.

`python -m bench.triage` trains both encoders on 120 s of the line, exports them, commissions a device on 240 s of other
seeds, and lets every kind of fault run for 12 s in each of `--seeds` other runs of the line. The limits of edge.triage
were set on the kinds in CHOSEN_ON; the share that is right is of the others. Beside it, the same runs judged by
evidence alone (product words, section 2). A run without an alarm blames nobody: it is counted, and in no share.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from edge import triage
from edge.config import DeviceConfig, DeviceSettings, SensorSettings
from edge.encoder import Encoder
from edge.ensemble import Ensemble
from edge.faults import FAULTS, Injector
from edge.pipeline import Pipeline
from edge.replay import commission, simulated
from export import bundle
from lineside.clock import NS, SystemClock
from lineside.messages import Alarm
from lineside.recording import About, Recorder, Recording
from trainer.plan import Plan, RecordingPart
from trainer.stage import run_stage

SENSORS = {"cam0": "camera", "mic0": "microphone"}
CHOSEN_ON = ("bearing_noise", "misaligned_part", "slow_motor", "dirty_lens", "gain_loss", "black")
START_NS = 1_700_000_000 * NS
TRAIN_S, COMMISSION_S, RUN_S, EPOCHS = 120, 240, 12, 40


def config(seed: int) -> DeviceConfig:
    sensors = [SensorSettings(name=n, modality=m, source="simulation", seed=seed) for n, m in SENSORS.items()]
    return DeviceConfig(device=DeviceSettings(id="bench", site="bench", station="press"), sensors=sensors)


def recorded(path: Path, seconds: int, seed: int) -> Path:
    with Recorder(path, About(station="press", sensors=SENSORS)) as recorder:
        for samples in simulated(config(seed), path.parent, START_NS, seconds):
            recorder.write(samples)
    return path


def commissioned(folder: Path) -> Ensemble:
    """A device of freshly trained encoders that knows what is normal."""
    normal = recorded(folder / "normal.mcap", TRAIN_S, seed=1)
    plan = Plan(out=str(folder / "stage"), recordings=[RecordingPart(path=str(normal))], epochs=EPOCHS)
    stage = run_stage(plan, folder, SystemClock())
    assert stage is not None
    built = bundle.build(folder / "stage", folder / "bundles", precisions=("fp32",))
    encoders = {one.modality: Encoder.load(folder / "bundles" / one.file) for one in built}
    recording = Recording(recorded(folder / "commissioning.mcap", COMMISSION_S, seed=3))
    return commission(config(3), Ensemble(encoders), recording).ensemble(encoders, config(3))


def blamed(ensemble: Ensemble, kind: str, seed: int) -> tuple[str, str]:
    """The cause that the first alarm names, and the one by evidence alone; "" where there is none."""
    pipeline, injector = Pipeline(config(seed)), Injector()
    pipeline.ensemble = ensemble
    if kind:
        injector.start(kind, START_NS + 10**9 * NS)
    for samples in simulated(config(seed), Path(), START_NS + seed * 977 * NS, RUN_S):
        for message in pipeline.push(injector.apply(samples)):
            if isinstance(message, Alarm) and message.state == "raised":
                return message.cause, "sensor" if message.kind == "sensor" else by_evidence(pipeline)
    return "", ""


def by_evidence(pipeline: Pipeline) -> str:
    """The hypothesis of the product's words for the moments before the alarm."""
    recent = pipeline.recent
    names = {name for moment in recent for name in moment.single}
    strange = [name for name in names if np.median([m.single.get(name, 0.0) for m in recent]) >= triage.STRANGE]
    if len(strange) != 1:
        return "process" if strange else "undecided"
    return triage.by_agreement(recent, strange[0]).cause


def main() -> None:
    """Print the matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found: dict[str, tuple[Counter[str], Counter[str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ensemble = commissioned(Path(folder))
        for kind in ("", *FAULTS):
            ours, evidence = Counter[str](), Counter[str]()
            for seed in range(100, 100 + asked.seeds):
                cause, other = blamed(ensemble, kind, seed)
                ours[cause] += 1
                evidence[other] += 1
            found[kind] = ours, evidence
            print(kind or "normal running", dict(ours), dict(evidence), file=sys.stderr)
    tested = [kind for kind in FAULTS if kind not in CHOSEN_ON]
    shares = [share(found, tested, which) for which in (0, 1)]
    if asked.json:
        rows = {kind: [dict(counts) for counts in both] for kind, both in found.items()}
        print(json.dumps({"seeds": asked.seeds, "kinds": rows, "right": shares[0], "right_by_evidence": shares[1]}))
        return
    print(
        "| fault | cause | sensor | process | undecided | no alarm | by evidence alone: sensor | process | undecided |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for kind, (ours, evidence) in found.items():
        name = f"{kind} (chosen on)" if kind in CHOSEN_ON else kind or "normal running"
        cells = [ours[c] for c in ("sensor", "process", "undecided", "")]
        cells += [evidence[c] for c in ("sensor", "process", "undecided")]
        print(f"| {name} | {FAULTS[kind].cause if kind else ''} | " + " | ".join(map(str, cells)) + " |")
    print(f"\nRight, of alarms of the {len(tested)} kinds that nothing was chosen on: {shares[0]:.3f}; ", end="")
    print(f"by evidence alone {shares[1]:.3f}.")


def share(found: dict[str, tuple[Counter[str], Counter[str]]], kinds: list[str], which: int) -> float:
    """Share of alarms whose cause is right."""
    right = sum(found[kind][which][FAULTS[kind].cause] for kind in kinds)
    return right / max(1, sum(count for kind in kinds for cause, count in found[kind][which].items() if cause))


if __name__ == "__main__":
    main()
