"""Is fusion ever worse than the best single sensor, and what do UMT and low-rank adapters add?

`python -m bench.fusion --data ../shared/data/dev --seeds 3 [--only NAME] [--json FILE] [--out FILE.md]` registers a
stand-alone model a sensor and runs every way to fuse, as `lineside train register` and `adapt` do, on each benchmark
with two sensors or more and 300 test samples or more. Settings and the way that is shipped are chosen on the validation
part; the test part is read once. Intervals are of each seed's test data, by bootstrap over groups (paired where two are
compared); a table of ways shows the lowest and the highest end of all seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from bench.fusion_data import BENCHMARKS, LEFT_OUT, PARTS
from lineside.clock import NS, SystemClock
from lineside.files import write_atomic
from trainer import registry
from trainer.adapt import adapt
from trainer.adapt_plan import AdaptPlan, RegisterPlan
from trainer.fusion_result import Result
from trainer.labelled import Labelled
from trainer.plan import RecordingPart
from trainer.progress import Bar

HERE = [RecordingPart("benchmark")]


def main() -> None:
    """Run what is asked for, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/dev"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=list(BENCHMARKS), action="append", help="several times; all if not given")
    parser.add_argument("--json", type=Path, help="write every seed's whole result here")
    parser.add_argument("--out", type=Path, help="write the Markdown table here, not to stdout")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: run(name, asked.data, asked.seeds) for name in asked.only or BENCHMARKS}
    command = f"python -m bench.fusion --seeds {asked.seeds}"
    if asked.json:
        write_atomic(asked.json, json.dumps(found, indent=1).encode() + b"\n")
    text = markdown(found, command)
    if asked.out:
        write_atomic(asked.out, text.encode())
    else:
        print(text)


def run(name: str, data: Path, seeds: int) -> dict[str, Any]:
    """Every seed of one benchmark."""
    clock, labelled = SystemClock(), BENCHMARKS[name](data)
    began = clock.now_ns()
    with Bar() as bar:
        results = []
        for seed in range(1, seeds + 1):
            bar(f"{name}: seeds", seed - 1, seeds)
            results.append(msgspec.to_builtins(once(labelled, seed)))
        bar(f"{name}: seeds", seeds, seeds)
    counts = {part: len(labelled.rows[part]) for part in PARTS}
    groups = len(np.unique(labelled.groups[labelled.rows["test"]]))
    about = str(BENCHMARKS[name].__doc__).split("\n\n", maxsplit=1)[0]
    seconds = (clock.now_ns() - began) / NS
    return {"about": about, "moments": counts, "test_groups": groups, "seconds": seconds, "results": results}


def once(data: Labelled, seed: int) -> Result:
    """Register every sensor's model and adapt, with one seed."""
    alone = RegisterPlan(registry="registry", recordings=HERE, seed=seed)
    together = AdaptPlan(registry="registry", recordings=HERE, out="fused", seed=seed)
    known = {name: registry.make(data, name, alone) for name in sorted(set(data.dataset.modalities.values()))}
    return adapt(known, data, together).result


def markdown(found: Mapping[str, dict[str, Any]], command: str) -> str:
    """A summary of all benchmarks, then a table of ways each."""
    lines = ["| benchmark | best single | its accuracy | shipped | its accuracy | gain, points (95 %) | gates |"]
    lines += ["|" + "---|" * 7]
    for name, about in found.items():
        lines += [summary(name, f"{k + 1}", each) for k, each in enumerate(about["results"])]
    for name, about in found.items():
        lines += ["", f"## {name}", "", *benchmark(about)]
    lines += ["", "## What does not qualify", "", *(f"- `{name}`: {why}." for name, why in LEFT_OUT.items()), ""]
    return "\n".join([f"`{command}`", "", *lines])


def summary(name: str, seed: str, result: dict[str, Any]) -> str:
    """One seed of one benchmark."""
    rows = {row["way"]: row for row in result["table"]}
    best, chosen = rows[f"registered: {result['best_single']}"], rows[result["chosen"]]
    low, high = result["gain_interval"]
    failed = [g["name"] for g in result["gates"] if g["value"] < g["limit"]]
    return (
        f"| {name}, seed {seed} | {result['best_single']} | {best['accuracy']:.3f} | {result['chosen']} "
        f"| {chosen['accuracy']:.3f} | {100 * result['gain']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f}) "
        f"| {'failed: ' + ', '.join(failed) if failed else 'passed'} |"
    )


def benchmark(about: dict[str, Any]) -> list[str]:
    """The table of one benchmark: means over seeds, with the widest of their intervals."""
    results = about["results"]
    counts = ", ".join(f"{count} {part}" for part, count in about["moments"].items())
    lines = [f"{about['about']} {counts}; {about['test_groups']} groups in test; {about['seconds']:.0f} s.", ""]
    lines += ["| way | val | test (std over seeds) | 95 % of test | macro-F1 | trained |", "|" + "---|" * 6]
    for way in dict.fromkeys(row["way"] for result in results for row in result["table"]):
        rows = [row for result in results for row in result["table"] if row["way"] == way]
        some = "" if len(rows) == len(results) else f" (shipped by {len(rows)} of {len(results)} seeds)"
        lines.append(_line(way + some, rows))
    lines += ["", f"Why, by seed: {'; '.join(result['why'] for result in results)}.", ""]
    lines += ["Contributions (mean nats, share of magnitude) and retention rho, by seed:", ""]
    for sensor in results[0]["contributions"]:
        told = [
            f"{r['contributions'][sensor]['mean_nats']:+.2f}, {r['contributions'][sensor]['share']:.2f}, "
            f"rho {r['retention'][sensor]['rho']:.3f}"
            for r in results
        ]
        lines.append(f"- {sensor}: {'; '.join(told)}")
    return lines


def _line(way: str, rows: Sequence[dict[str, Any]]) -> str:
    accuracy = [row["accuracy"] for row in rows]
    spread = float(np.std(accuracy, ddof=1)) if len(rows) > 1 else 0.0
    on_val = np.mean([row["val_accuracy"] for row in rows])
    return (
        f"| {way} | {on_val:.3f} | {np.mean(accuracy):.3f} ({spread:.3f}) "
        f"| {min(row['low'] for row in rows):.3f} to {max(row['high'] for row in rows):.3f} "
        f"| {np.mean([row['macro_f1'] for row in rows]):.3f} | {rows[0]['trained']} |"
    )


if __name__ == "__main__":
    main()
