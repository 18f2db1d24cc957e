"""Comparing ways of learning: what runs measure, how rows are reckoned, and that benchmarks keep to their splits."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from lineside.clock import NS
from lineside.errors import LinesideError
from lineside.features import FeaturesPrepare
from trainer import benchmarks, report
from trainer.__main__ import compare as command
from trainer.benchmarks import BENCHMARKS, Benchmark, Task
from trainer.compare import Run, bootstrap, run, summary
from trainer.data import Dataset, View
from trainer.methods import METHODS

pytestmark = pytest.mark.slow

SHARED = Path(__file__).parents[2] / "shared" / "data" / "dev"
needs_data = [
    pytest.mark.shared,
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/dev beside the repository"),
]
WIDTH = 10


def part(kinds, count, seed, turn):
    """Two sensors that see the same kind through maps of their own, other ones each stage."""
    rng, maps = np.random.default_rng([seed, 7]), np.random.default_rng([turn, 8])
    names = np.array(kinds)[rng.integers(len(kinds), size=count)]
    means = {kind: np.random.default_rng([ord(kind), 9]).normal(size=8) for kind in kinds}
    hidden = np.stack([means[kind] for kind in names]) + 0.3 * rng.normal(size=(count, 8))
    views = {}
    for sensor in ("a", "b"):
        seen = hidden @ maps.normal(size=(8, WIDTH)) / 3
        views[sensor] = View(sensor, seen.astype(np.float32), np.ones(count, np.bool_))
    specs = {sensor: FeaturesPrepare(WIDTH, "ab" * 32) for sensor in ("a", "b")}
    start = np.arange(count, dtype=np.int64) * NS
    return Dataset(views, specs, start, np.zeros(count, np.int64), NS, NS, {}, [], names)


@pytest.fixture(scope="module")
def small():
    tasks = []
    for turn in range(3):
        parts = {split: part(["x", "y", "z"], n, 10 * turn + k, turn) for k, (split, n) in enumerate(SIZES.items())}
        groups = {split: np.arange(n) // 2 for split, n in SIZES.items()}
        tasks.append(Task(f"turn {turn}", parts, (("a", "b"),), groups))
    return Benchmark("small", tuple(tasks), "class", "own", 1 / 3)


SIZES = {"train": 200, "val": 40, "test": 60}


@pytest.fixture(scope="module")
def found(small):
    names = ("fine-tune", "solved, one look", "joint")
    return {name: run(small, name, narrowed(METHODS[name]), 1, "test", 8) for name in names}


@pytest.mark.slow
def test_heads_solved_from_moments_of_all_stages_forget_nothing(found):
    assert abs(found["solved, one look"].backward_transfer) < 0.05
    assert found["solved, one look"].final > found["fine-tune"].final + 0.1
    assert found["solved, one look"].stored == 0
    assert [len(row) for row in found["fine-tune"].scores] == [1, 2, 3]
    assert [len(row) for row in found["joint"].scores] == [3]
    assert [len(hits) for hits in found["joint"].hits] == [120, 120, 120]


@pytest.mark.slow
def test_every_method_runs_through_two_stages(small):
    two = Benchmark("small", small.tasks[:2], "class", "own", 1 / 3)
    for name, method in METHODS.items():
        assert 0 <= run(two, name, narrowed(method), 1, "val", 1).final <= 1, name


def narrowed(method):
    """The method with few random features, to be quick."""

    def settings(plan):
        plan = method.settings(plan)
        return msgspec.structs.replace(plan, encoders=msgspec.structs.replace(plan.encoders, width=64))

    return replace(method, settings=settings)


def made(method, seed, scores, hits):
    then = [[1.0] * len(row) for row in hits]
    groups = [[k // 2 for k in range(len(row))] for row in hits]
    return Run(
        benchmark="made",
        method=method,
        seed=seed,
        split="test",
        epochs=1,
        scores=scores,
        hits=hits,
        hits_then=then,
        groups=groups,
        drift=0.0,
        seconds=1.0,
        peak_mib=1.0,
        stored=0,
        epsilons=[],
    )


def test_scores_become_averages_transfer_and_forgetting():
    one = made("fine-tune", 1, [[0.9], [0.95, 0.8], [0.4, 0.6, 0.7]], [[1.0] * 4] * 3)
    assert one.final == pytest.approx(17 / 30)
    assert one.backward_transfer == pytest.approx((0.4 - 0.9 + 0.6 - 0.8) / 2)
    assert one.forgetting == pytest.approx((0.95 - 0.4 + 0.8 - 0.6) / 2)
    assert one.learned == pytest.approx(0.8)
    assert one.worst == pytest.approx(0.4 / 0.95)
    joint = made("joint", 1, [[0.5, 0.5, 0.5]], [[1.0] * 4] * 3)
    assert (joint.backward_transfer, joint.forgetting) == (0, 0)
    rows = {row.method: row for row in summary([one, joint])}
    assert rows["fine-tune"].of_joint == pytest.approx(17 / 15)


def test_intervals_are_of_groups_drawn_together():
    rng = np.random.default_rng(3)
    pairs = np.repeat(rng.integers(0, 2, 200), 2).astype(float).tolist()  # both queries of a group agree
    (low, high), (moved_low, moved_high) = bootstrap([made("joint", 1, [[0, 0]], [pairs, pairs])])
    width = 2 * 1.96 * np.std(pairs) / np.sqrt(200) / np.sqrt(2)  # 200 groups, two tasks
    assert high - low == pytest.approx(width, rel=0.2)
    assert low < np.mean(pairs) < high
    assert moved_low < np.mean(pairs) - 1 < moved_high


def test_the_table_and_the_picture_name_every_method_and_the_command(found, tmp_path):
    runs = list(found.values())
    files = report.write(runs, tmp_path, "small", "lineside train compare --benchmark small --seeds 1")
    text = Path(files["table"]).read_text()
    for name, one in found.items():
        assert name in text
        assert f"{one.final:.3f}" in text
    assert "lineside train compare --benchmark small" in text
    assert Path(files["plot"]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"benchmark": "mnist"}, "there is no 'mnist'; choose of: av-digits; skab; fan"),
        ({"methods": "magic"}, "there is no 'magic'; choose of: fine-tune; "),
        ({"split": "train"}, "there is no 'train'; choose val or test"),
        ({"data": Path("nowhere")}, "is not there; give the folder"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(words, told, tmp_path):
    given = {"benchmark": "fan", "data": SHARED, "methods": "", "seeds": 1, "epochs": 1, "split": "test"}
    with pytest.raises(LinesideError) as refused:
        command(out=tmp_path, **{**given, **words})
    assert told in str(refused.value)


@pytest.fixture(scope="module")
def real():
    return {each.name: each for name in BENCHMARKS for each in BENCHMARKS[name](SHARED)}


@pytest.mark.parametrize("mark", [pytest.param(None, marks=needs_data)])
def test_no_clip_picture_or_window_is_in_two_splits(real, mark):
    for each in real.values():
        for sensor in {sensor for task in each.tasks for sensor in task.parts["train"].views}:
            seen = {}
            for split in ("train", "val", "test"):
                windows = [t.parts[split].views[sensor].inputs for t in each.tasks if sensor in t.parts[split].views]
                seen[split] = {window.tobytes() for part in windows for window in part if window.std() > 1e-6}
            assert not seen["train"] & seen["test"], (each.name, sensor)
            assert not seen["val"] & seen["test"], (each.name, sensor)


@pytest.mark.parametrize("mark", [pytest.param(None, marks=needs_data)])
def test_benchmarks_are_what_they_say(real, mark):
    assert [len(each.tasks) for each in real.values()] == [6, 5, 4, 4]
    by_class = real["av-digits classes"]
    assert [sorted(set(task.parts["test"].labels)) for task in by_class.tasks][:2] == [["0", "1"], ["2", "3"]]
    assert sum(len(task.parts["test"]) for task in by_class.tasks) == 3000
    conditions = real["av-digits conditions"]
    assert all(len(set(task.parts["train"].labels)) == 10 for task in conditions.tasks)
    assert sorted({sensor for task in real["skab"].tasks for sensor in task.parts["test"].views}) == [
        "electrical",
        "hydraulic",
        "thermal",
        "vibration",
    ]
    assert [set(task.parts["test"].labels) for task in real["fan"].tasks] == [{"off"}, {"low"}, {"med"}, {"high"}]


def test_a_camera_mounted_another_way_turns_and_inverts():
    picture = np.zeros((1, 28, 28), np.uint8)
    picture[0, 2:6, 12:16] = 200
    assert np.array_equal(benchmarks.mounted(picture, 0), picture)
    assert np.array_equal(benchmarks.mounted(picture, 1), 255 - picture)
    left = benchmarks.mounted(picture, 4)  # a quarter turn: what was above the middle is beside it
    assert left[0, 12:16, :7].max() == 200 or left[0, 12:16, -7:].max() == 200
    assert left[0, :7, 12:16].max() == 0
