"""How well new encoders go with old ones: every way of learning a second condition of written and spoken digits.

`python -m bench.compatibility` learns a first speaker and camera mounting as stage 1, a second of each as stage 2
(trainer.benchmarks.conditions), and certifies stage 2 beside stage 1 (trainer.compatibility) on what stage 1's devices
see: the first condition. Its validation split teaches what is normal, its test split is judged, once as it is and once
with made defects. A hit is a window of the query's class. Nothing is chosen by these numbers. `--out` writes Markdown.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from msgspec import structs

from lineside.files import write_atomic
from trainer import compatibility
from trainer.benchmarks import Benchmark, conditions
from trainer.checkpoint import identities
from trainer.compare import embeddings, learn_task, score
from trainer.compatibility import (
    LEAST_RECALL,
    MOST_FALSE,
    MOST_FLIPS,
    MOST_LOSS,
    Compatibility,
    Interval,
    Mix,
    Trial,
    Version,
)
from trainer.methods import METHODS, base
from trainer.plan import BackwardSettings, HeadSettings, Plan
from trainer.progress import Bar

WAYS: dict[str, tuple[str, float]] = {  # a row of METHODS, and the weight of the backward term
    "fine-tune": ("fine-tune", 0.0),
    "fine-tune, backward": ("fine-tune", 1.0),
    "replay 200": ("replay 200", 0.0),
    "encoders held": ("encoders held", 0.0),
    "encoders held, backward": ("encoders held", 1.0),
    "frozen, heads rotated": ("frozen, heads rotated", 0.0),
    "random, heads rotated": ("random, heads rotated", 0.0),
    "random, heads solved": ("random, heads rotated", 0.0),
}
COLUMNS = ("recall", "flips", "false_alarms", "area", "area_lost", "agreement")


def certified(benchmark: Benchmark, way: str, seed: int, epochs: int) -> tuple[Compatibility, float]:
    """The certificate of a second stage, and the mean recall@1 that it reaches on its own condition."""
    name, weight = WAYS[way]
    plan: Plan = METHODS[name].settings(base(seed, epochs, True))
    heads = HeadSettings(fit="moments") if way.endswith("solved") else plan.heads
    plan = structs.replace(plan, backward=BackwardSettings(weight=weight), heads=heads)
    first, second = benchmark.tasks[:2]
    with tempfile.TemporaryDirectory() as folder:
        old, _ = learn_task(plan, first.parts["train"], first.parts["val"], None, Path(folder) / "1")
        kept = _version("old", old)
        new, _ = learn_task(plan, second.parts["train"], second.parts["val"], old, Path(folder) / "2")
    normal = first.parts["test"]
    trial = Trial(first.parts["val"], normal, compatibility.with_defects(normal), labels=True)
    found = compatibility.certify(_version("new", new), kept, trial)
    z = [embeddings(new.tensors.encoders, task.parts["test"]) for task in (first, second)]
    return found, float(np.mean(score(benchmark, z, "test", 1)))


def _version(name: str, stage: Any) -> Version:
    encoders = stage.tensors.encoders
    return Version(name, encoders, identities(stage.stage, encoders))


def rows(benchmark: Benchmark, seeds: int, epochs: int, bar: Bar) -> Iterator[dict[str, Any]]:
    """One row a way and mix: means over seeds, the worst seed, and how many seeds passed every gate of the mix."""
    total, done = len(WAYS) * seeds, 0
    for way in WAYS:
        found = []
        for seed in range(1, seeds + 1):
            found.append(certified(benchmark, way, seed, epochs))
            done += 1
            bar("second stages", done, total)
        for number, mix in enumerate(found[0][0].mixes):
            if not mix.new:
                continue
            same = [one.mixes[number] for one, _ in found]
            passed = sum(one.mixes[number].encoders in one.certified for one, _ in found)
            reached = sum(within(mix) for mix in same)
            values = {name: [_value(getattr(each, name)) for each in same] for name in COLUMNS}
            yield {
                "way": way,
                "new": " + ".join(mix.new),
                "recall_old": float(np.mean([one.recall_old for one, _ in found])),
                "learned": float(np.mean([learned for _, learned in found])),
                "area_old": float(np.mean([one.area_old for one, _ in found])),
                "reached": f"{reached} of {seeds}",
                "passed": f"{passed} of {seeds}",
                "mean": {name: float(np.mean(each)) for name, each in values.items()},
                "worst": _worst(values),
                "intervals": msgspec.to_builtins({name: [getattr(each, name) for each in same] for name in COLUMNS}),
            }


def within(mix: Mix) -> bool:
    """Whether the measured values of a mix, whatever their intervals, keep the limits."""
    kept = _value(mix.recall) >= LEAST_RECALL, mix.flips.value <= MOST_FLIPS, mix.false_alarms.value <= MOST_FALSE
    return all(kept) and mix.area_lost.value <= MOST_LOSS


def _value(interval: Interval | None) -> float:
    assert interval is not None
    return interval.value


def _worst(values: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: (min if name in ("recall", "area") else max)(each) for name, each in values.items()}


HEAD = """\
# Old and new encoders beside each other

2026-11-22, x86-64 virtual machine, 2 cores, no GPU: `{command}`

Stage 1 learned one speaker and camera mounting of written and spoken digits, stage 2 another; the certificate is of the
first condition (test split, {count} pairs), where a device may run any mix of both stages' encoders. `recall` is
recall@1 by class of the mix over that of old with old, `flips` the share of moments that old with old judged right and
the mix judges wrong, `false alarms` those at the old threshold over those of old with old, `AUROC` and `lost` that of
made defects against normal running as the old encoders learned it and how much less that is than against one learned
anew, `agreement` how far the law of cosines moved (Kolmogorov–Smirnov). Each is a mean over {seeds} seeds with the
worst seed in brackets. `reached` counts the seeds whose measured values keep all four limits (recall at least 0.99,
flips at most 0.01, false alarms at most 1.2, at most 0.01 of AUROC lost), `passed` those of which no 95 % interval lies
wholly beyond one, which is what the gates ask. `learned` is recall@1 of both new encoders on the second condition
(chance 0.1).

"""


def markdown(table: list[dict[str, Any]], head: str) -> str:
    """The table as Markdown."""
    names = [
        "way",
        "new",
        "recall",
        "flips",
        "false alarms",
        "AUROC",
        "lost",
        "agreement",
        "passed",
        "old with old",
        "learned",
    ]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in table:
        cells = [f"{row['mean'][name]:.3f} ({row['worst'][name]:.3f})" for name in COLUMNS]
        about = [row["reached"], row["passed"], f"{row['recall_old']:.3f}", f"{row['learned']:.3f}"]
        lines.append("| " + " | ".join([row["way"], row["new"], *cells, *about]) + " |")
    return head + "\n".join(lines) + "\n"


def main() -> None:
    """Learn, certify, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/dev"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="Markdown file")
    parser.add_argument("--json", action="store_true", help="one JSON line, intervals of every seed included")
    given = parser.parse_args()
    torch.set_num_threads(1)
    benchmark = conditions(given.data)
    with Bar() as bar:
        table = list(rows(benchmark, given.seeds, given.epochs, bar))
    command = f"python -m bench.compatibility --seeds {given.seeds} --epochs {given.epochs}"
    count = len(benchmark.tasks[0].parts["test"])
    text = markdown(table, HEAD.format(command=command, seeds=given.seeds, count=count))
    if given.out:
        write_atomic(given.out, text.encode())
    print(json.dumps(table) if given.json else text)


if __name__ == "__main__":
    main()
