"""Attach a sensor without pairs, on real data, beside the paired upper bound, C-MCR and chance. Prints Markdown.

`python -m bench.attach --data ../shared/data/dev --seeds 5`; settings are chosen with `--split val`. Base and leaf are
stages by the product's own code; what is attached, `trainer.align` attaches.

- SKAB, a pump: base vibration + hydraulic, leaf electrical + hydraulic. Each file lies in one split; of the training
  files, the leaf has the even stretches of three minutes and the base the odd ones, so that no second of training holds
  both electrical and vibration. Truth is synchrony. Overlapping files share no second between splits or sides.
- Digits seen and heard: base camera + code, leaf microphone + code, where the code is the digit's class. That is
  supervised alignment, not attachment: whoever has class codes has labels.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench.attach_scenes import HOP_S, WINDOW_S, Scene, digits, only, skab
from bench.attach_scores import by_class, by_moment, knows_the_kind, within
from trainer.align import Matched, Way, align, itself
from trainer.attach import Print, ways
from trainer.attach_plan import AttachPlan, ProjectorSettings
from trainer.compare import learn_task
from trainer.data import Dataset
from trainer.evaluate import embed
from trainer.matching import Found, Queries, intervals, mean_over, of_bound
from trainer.methods import base as plain
from trainer.plan import Plan, RecordingPart
from trainer.progress import Bar, Progress, silent
from trainer.quadruples import Lookup, Memories
from trainer.spaces import Evidence
from trainer.work import Parent

HIDDEN = 256
PAIR_STAGE = "stage on pairs"
BOUNDS = ("upper bound", PAIR_STAGE)
MEMORY = [RecordingPart("memory")]
SCORES = {"recall_few": "R@1 of 20", "recall_1": "R@1", "recall_5": "R@5", "mean_ap": "mAP"}


@dataclass(frozen=True)
class Run:
    """One seed: each way and the pairs it is measured on, how retrieval went, what of the base differs (must be 0)."""

    ways: dict[str, tuple[Way, Matched]]
    lookups: list[Lookup]
    base: tuple[float, ...]


def attach_once(scene: Scene, stage: Plan, plan: AttachPlan, progress: Progress = silent) -> Run:
    """Both stages, the attachment, and everything beside it, with one seed."""
    newcomer, overlap, partner = scene.sensors
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = {
            side: learn_task(stage, only(part, pair), only(scene.val, pair), None, folder / side)[0]
            for side, part, pair in (
                ("leaf", scene.leaf, (newcomer, overlap)),
                ("base", scene.base, (partner, overlap)),
            )
        }
        known, held = _memories(scene, made), _matched(scene, made, scene.measured, scene.groups)
        nobody = np.zeros(len(scene.paired), np.int64), np.zeros(len(scene.val), np.int64)
        pairs = [_matched(scene, made, part, at) for part, at in zip((scene.paired, scene.val), nobody, strict=True)]
        before = Print.take(folder / "base", made["base"], known)
        model, lookups = align(plan, known, None, progress)
        maps = {name: (way, held) for name, way in ways(plan, known, model, Evidence(held, *pairs), progress).items()}
        maps[PAIR_STAGE] = _pair_stage(scene, stage, folder)
        after = Print.take(folder / "base", made["base"], _memories(scene, made))
        gates = before.differs(after)
    return Run(maps, lookups, tuple(gate.value for gate in gates))


def stage_plan(seed: int, epochs: int) -> Plan:
    """Learned encoders, contrast of a moment's two sensors."""
    return plain(seed, epochs, labels=False)


def attach_plan(seed: int, epochs: int) -> AttachPlan:
    """The defaults of a plan, but for epochs and width."""
    return AttachPlan(
        out="head.safetensors",
        base="base",
        leaf="leaf",
        newcomer="newcomer",
        overlaps=MEMORY,
        newcomers=MEMORY,
        partners=MEMORY,
        seed=seed,
        epochs=epochs,
        projector=ProjectorSettings(hidden=HIDDEN),
    )


@dataclass(frozen=True)
class Row:
    """One way over seeds: mean with the interval of the test data, and the values of the seeds."""

    found: dict[str, Found]
    seeds: dict[str, list[float]]

    @classmethod
    def of(cls, queries: Sequence[Queries]) -> Row:
        """Of the same queries by several seeds."""
        seeds = {name: [float(each.scores[name].mean()) for each in queries] for name in queries[0].scores}
        return cls(intervals(mean_over(list(queries))), seeds)


@dataclass(frozen=True)
class Table:
    """One benchmark by one kind of scoring: rows by way, and what zero-pair reaches of the bound above chance."""

    rows: dict[str, Row]
    shares: dict[str, dict[str, tuple[Found, list[float]]]]


def table(runs: Sequence[Run], scene: Scene, score: Callable[[Way, Matched, NDArray[np.int64]], Queries]) -> Table:
    """All ways of all seeds."""
    queries = {name: [score(*run.ways[name], scene.kinds) for run in runs] for name in runs[0].ways}
    reached = mean_over(queries["zero-pair"])
    shares: dict[str, dict[str, tuple[Found, list[float]]]] = {}
    for bound in BOUNDS:
        best = mean_over(queries[bound])
        shares[bound] = {
            name: (
                of_bound(reached, best, name),
                [of_bound(a, b, name).value for a, b in zip(queries["zero-pair"], queries[bound], strict=True)],
            )
            for name in reached.scores
        }
    return Table({name: Row.of(each) for name, each in queries.items()}, shares)


def markdown(made: Table, extra: Mapping[str, Queries], shares: bool = True) -> list[str]:
    """A table, chance first; after the mean stand (std over seeds) and the 95 % interval of the measured data.

    Without `shares` where a bound is not above chance: what would be reached of it is no number.
    """
    names = list(next(iter(made.rows.values())).found)
    chance = next(iter(made.rows.values())).found
    lines = [f"| | {' | '.join(SCORES[name] for name in names)} |", "|---" * (len(names) + 1) + "|"]
    lines.append(f"| chance | {' | '.join(f'{chance[name].chance:.3f}' for name in names)} |")
    for title, queries in extra.items():
        lines.append(f"| {title} | {' | '.join(f'{queries.scores[name].mean():.3f}' for name in names)} |")
    for way in ("c-mcr", "zero-pair", *BOUNDS):
        row = made.rows[way]
        cells = [_cell(row.found[name], row.seeds[name]) for name in names]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    for bound, found in made.shares.items() if shares else ():
        cells = [_cell(*found[name]) for name in names]
        lines.append(f"| zero-pair of the {bound}, above chance | {' | '.join(cells)} |")
    return lines


def details(runs: Sequence[Run]) -> list[str]:
    """What the bound was, what of the base differs, and how retrieval went, in the mean over seeds."""
    hashes, delta = (max(run.base[k] for run in runs) for k in (0, 1))
    bounds = "; ".join(run.ways["upper bound"][0].name for run in runs)
    lines = [
        f"\nBound by seed: {bounds}.",
        f"Base before and after: {hashes:.0f} of 3 hashes differ (files; parameters and buffers; embeddings), its own",
        f"retrieval by {delta:g}.\n",
        "| retrieval | queries | rows | largest weight | entropy of log rows | distinct answers |",
        "|---|---|---|---|---|---|",
    ]
    for looks in zip(*(run.lookups for run in runs), strict=True):
        peak, entropy, distinct = (
            float(np.mean([getattr(look, name) for look in looks])) for name in ("peak", "entropy", "distinct")
        )
        one = looks[0]
        lines.append(f"| {one.name} | {one.queries} | {one.rows} | {peak:.2f} | {entropy:.2f} | {distinct:.1f} |")
    return lines


HEAD = """# Attached without pairs

`python -m bench.attach --seeds {seeds} --split {split}`. Means over seeds, in brackets their standard deviation,
then the 95 % interval of the measured data, seeds averaged. `upper bound`: the same two frozen spaces, joined by a map
learned from pairs, its kind and length chosen on val. `stage on pairs`: encoders and heads learned from pairs too.
Goal: 70 % of the bound's R@1 of 20 above chance."""
SKAB_TEXT = """
## SKAB: electrical joins vibration + hydraulic through hydraulic

A window is {window} s (hop {hop} s) of 1 Hz values, normal or faulty. The gallery is all {n} windows of the
`{split}` split: {files} files that nothing was learned from, of {days} days. A query is an electrical window that asks
for the vibration window of the same minute, and back. R@1 of 20: expected, among the partner and 19 others drawn at
random. Learned from: leaf {leaf}, base {base} windows of different minutes; bound {paired} pairs. Intervals resample
files.
"""
DIGITS_TEXT = """
## Digits: microphone joins camera + code through the code (supervised alignment)

A window is a clip or a picture of a digit; the overlap is its class, as one of ten codes. The gallery is all {n}
of the `{split}` split; right is any of the query's class, both ways. Learned from: leaf {leaf}, base {base} windows of
different clips; bound {paired} pairs by class. Intervals resample clips.
"""


def report_skab(runs: Sequence[Run], scene: Scene, split: str) -> list[str]:
    """Both tables of SKAB."""
    files, days = len(np.unique(scene.groups)), len(np.unique(scene.kinds))
    day = {"knows the day alone": knows_the_kind(scene.groups, scene.kinds)}
    return [
        SKAB_TEXT.format(window=WINDOW_S, hop=HOP_S, files=files, days=days, split=split, **counts(scene)),
        *markdown(table(runs, scene, by_moment), day),
        *details(runs),
        "\nAmong the windows of one day alone:\n",
        *markdown(table(runs, scene, within), {}, shares=False),
    ]


def report_digits(runs: Sequence[Run], scene: Scene, split: str) -> list[str]:
    """The table of digits."""
    return [
        DIGITS_TEXT.format(split=split, **counts(scene)),
        *markdown(table(runs, scene, by_class), {}),
        *details(runs),
    ]


def counts(scene: Scene) -> dict[str, int]:
    """How much there is of what."""
    return {"n": len(scene.kinds), "leaf": len(scene.leaf), "base": len(scene.base), "paired": len(scene.paired)}


@dataclass(frozen=True)
class Benchmark:
    """What is read, how many epochs a stage and an attachment have, and what is told."""

    scene: Callable[[Path, str], Scene]
    stage_epochs: int
    attach_epochs: int
    report: Callable[[Sequence[Run], Scene, str], list[str]]


BENCHMARKS = {"skab": Benchmark(skab, 8, 12, report_skab), "digits": Benchmark(digits, 6, 4, report_digits)}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/dev"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--only", choices=tuple(BENCHMARKS), nargs="*", default=list(BENCHMARKS))
    asked_for = parser.parse_args()
    torch.set_num_threads(1)
    print(HEAD.format(seeds=asked_for.seeds, split=asked_for.split))
    for name in asked_for.only:
        chosen = BENCHMARKS[name]
        scene, runs = chosen.scene(asked_for.data, asked_for.split), []
        with Bar() as bar:
            for seed in range(1, asked_for.seeds + 1):
                stage, plan = stage_plan(seed, chosen.stage_epochs), attach_plan(seed, chosen.attach_epochs)
                runs.append(attach_once(scene, stage, plan))
                bar(f"seeds of {name}", seed, asked_for.seeds)
        print("\n".join(chosen.report(runs, scene, asked_for.split)), flush=True)


def _cell(found: Found, seeds: Sequence[float]) -> str:
    std = float(np.std(seeds, ddof=1)) if len(seeds) > 1 else 0.0
    return f"{found.value:.3f} ({std:.3f}) {found.low:.3f}..{found.high:.3f}"


def _pair_stage(scene: Scene, stage: Plan, folder: Path) -> tuple[Way, Matched]:
    """A stage of the same plan that learns newcomer and partner from pairs: encoders and heads, another space."""
    newcomer, _, partner = scene.sensors
    pair = newcomer, partner
    made, _ = learn_task(stage, only(scene.paired, pair), only(scene.val, pair), None, folder / "pairs")
    m, c = (_embed(made, sensor, [scene.measured]) for sensor in pair)
    return Way(PAIR_STAGE, itself), Matched(m, c, scene.groups)


def _memories(scene: Scene, made: Mapping[str, Parent]) -> Memories:
    newcomer, overlap, partner = scene.sensors
    both = [scene.leaf, scene.base]
    return Memories(
        m=_embed(made["leaf"], newcomer, [scene.leaf]),
        o_leaf=_embed(made["leaf"], overlap, both),
        o_base=_embed(made["base"], overlap, both),
        c=_embed(made["base"], partner, [scene.base]),
    )


def _matched(scene: Scene, made: Mapping[str, Parent], part: Dataset, groups: NDArray[np.int64]) -> Matched:
    newcomer, _, partner = scene.sensors
    return Matched(_embed(made["leaf"], newcomer, [part]), _embed(made["base"], partner, [part]), groups)


def _embed(space: Parent, sensor: str, parts: Sequence[Dataset]) -> torch.Tensor:
    encoder = space.tensors.encoders[parts[0].views[sensor].modality]
    return torch.from_numpy(np.concatenate([embed(encoder, part.views[sensor].inputs) for part in parts]))


if __name__ == "__main__":
    main()
