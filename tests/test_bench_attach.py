"""What bench.attach counts as right, and that no second is on two sides of it."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.attach_scenes import HOP_S, WINDOW_S, digits, skab, split_by_day
from bench.attach_scores import by_class, by_moment, knows_the_kind, within
from trainer.align import Matched, Way, itself
from trainer.benchmarks import SKAB_GROUPS

DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "dev"
shared = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/dev")
SAME = Way("same", itself)
GROUPS = "electrical", "hydraulic", "vibration"


def unit(count, dim, seed=0):
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)))


def test_the_right_answers_are_those_of_the_moment_of_the_day_and_of_the_class():
    z, kinds = unit(40, 6), np.arange(40) % 4
    held = Matched(z, z, np.arange(40))
    for score in (by_moment, within, by_class):
        assert score(SAME, held, kinds).scores["recall_1"].mean() == 1.0
    turned = Matched(z, z.roll(4, 0), np.arange(40))  # of the same kind, of another moment
    assert by_moment(SAME, turned, kinds).scores["recall_1"].mean() == 0.0
    assert by_class(SAME, turned, kinds).scores["recall_1"].mean() == 1.0
    assert by_class(SAME, turned, kinds).chance["recall_1"] == pytest.approx(0.25)
    assert within(SAME, turned, kinds).chance["recall_1"] == pytest.approx(0.1)


def test_precision_of_a_class_is_that_of_a_slow_count():
    a, c, kinds = unit(12, 4, 1), unit(12, 4, 2), np.arange(12) % 3
    found = by_class(SAME, Matched(a, c, np.arange(12)), kinds).scores["mean_ap"]
    for i in range(12):
        order = np.argsort(-(a @ c.T)[i].numpy(), kind="stable")
        hits = [kinds[j] == kinds[i] for j in order]
        precisions = [sum(hits[: k + 1]) / (k + 1) for k in range(12) if hits[k]]
        assert found[i] == pytest.approx(np.mean(precisions))


def test_who_knows_the_kind_alone_scores_as_embeddings_that_say_just_that():
    kinds = np.repeat([0, 1, 2], [30, 20, 10])
    told = knows_the_kind(np.arange(60), kinds).scores
    drawn = []
    for seed in range(200):  # likeness: the kind, and noise that breaks ties
        z = torch.cat([torch.eye(3)[kinds], 0.01 * unit(60, 5, seed)], dim=1)
        other = torch.cat([torch.eye(3)[kinds], 0.01 * unit(60, 5, 1000 + seed)], dim=1)
        drawn.append(by_moment(SAME, Matched(z, other, np.arange(60)), kinds).scores)
    for name, values in told.items():
        assert values.mean() == pytest.approx(np.mean([each[name].mean() for each in drawn]), rel=0.03), name


@pytest.mark.shared
@shared
def test_no_second_of_the_pump_is_in_two_splits_or_on_both_sides():
    parts = {split: skab(DATA, split) for split in ("val", "test")}
    with np.load(DATA / "skab_pump" / "skab.npz") as held:
        x, time_s, columns = held["X"], held["time"], [str(name) for name in held["columns"]]
    names = [columns.index(name) for group in GROUPS for name in SKAB_GROUPS[group]]
    where = {}
    for row, second in zip(x[:, names], time_s, strict=True):
        where.setdefault(row.tobytes(), set()).add(int(second))

    def seconds(part):
        """Every second of a dataset, found again by what all its sensors said; those that recur are left out."""
        values = np.concatenate([part.views[group].inputs for group in GROUPS], axis=1)
        found = (where[row.tobytes()] for row in np.unique(values.transpose(0, 2, 1).reshape(-1, 6), axis=0))
        return {next(iter(each)) for each in found if len(each) == 1}

    scene = parts["test"]
    cut = {
        "leaf": seconds(scene.leaf), "base": seconds(scene.base),
        "val": seconds(parts["val"].measured), "test": seconds(scene.measured),
    }  # fmt: skip
    assert all(len(each) > 2000 for each in cut.values())
    for a, b in itertools.combinations(cut, 2):
        assert not cut[a] & cut[b], (a, b)
    assert WINDOW_S >= 30
    assert HOP_S <= WINDOW_S
    assert set(split_by_day(DATA / "skab_pump" / "manifest.csv").values()) == {"train", "val", "test"}
    assert len(np.unique(scene.kinds)) == 3  # every day is measured


@pytest.mark.shared
@shared
def test_no_clip_is_on_both_sides_of_the_digits():
    scene = digits(DATA, "val")
    assert scene.sensors == ("mic0", "code0", "cam0")
    clips = [{x.tobytes() for x in part.views["mic0"].inputs} for part in (scene.leaf, scene.base)]
    assert clips[0]
    assert not clips[0] & clips[1]
    code = scene.leaf.views["code0"].inputs
    assert (code.sum(axis=1) == 1).all()
    assert (code.argmax(axis=1) == scene.leaf.labels.astype(int)).all()
