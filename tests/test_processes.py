"""Two processes (gloo, as torchrun starts them) learn what one does."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests import pitch_scene
from trainer import processes
from trainer.processes import ALONE, SharedBatchNorm, World

ROOT = Path(__file__).parents[1]


def plan_file(folder, out, **more):
    """A plan of the pitch scene as TOML; epochs few, as only agreement counts."""
    lines = {"out": f'"{out}"', "epochs": 2, "dim": 16, "batch": 32, **more}
    tables = "[gates]\nretrieval_times_chance = 0\nspread = 1.0\nretention_loss = 1.0\n"
    text = "".join(f"{name} = {value}\n" for name, value in lines.items() if "[" not in name)
    tables += "".join(f"{name}\n{value}\n" for name, value in lines.items() if "[" in name)
    path = folder / f"{out}.toml"
    path.write_text(f'{text}\n{tables}\n[[recordings]]\npath = "one.mcap"\n{pitch_scene.SMALL}')
    return path


def train(plan, count):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    done = subprocess.run(
        [sys.executable, *launch, "-m", "trainer", "stage", str(plan), "--json"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if line.startswith("{")]) == 1  # one process speaks
    return msgspec.json.decode(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    pitch_scene.record(folder / "one.mcap", 40, seed=1, deaf=(5, 6, 20))
    return folder


TEACHER = {"[teacher]": "contrast = 1.0\ncross = 1.0\nsame = 1.0\n", "[distill]": "weight = 1.0\n"}


def far_apart(one, two):
    a, b = (load_file(folder / "weights.safetensors") for folder in (one, two))
    assert a.keys() == b.keys()
    a, b = ({name: x.double() for name, x in tensors.items()} for tensors in (a, b))
    return max(float((a[name] - b[name]).norm() / (a[name].norm() + 1e-6)) for name in a)


def losses(folder):
    rows = list(csv.DictReader((folder / "log.csv").open()))
    return [float(row["loss"]) for row in rows]


@pytest.mark.slow
def test_one_and_two_processes_learn_the_same_first_stage_batch_norm_included(folder):
    """Some moments lack sound, so that the two processes hold unequal shares of it."""
    for count in (1, 2):
        train(plan_file(folder, f"first-{count}"), count)
    one, two = (losses(folder / f"first-{count}") for count in (1, 2))
    assert two[0] == pytest.approx(one[0], abs=2e-5)  # the same loss before any step, to the digits of the log
    assert two == pytest.approx(one, rel=1e-3)
    assert far_apart(folder / "first-1", folder / "first-2") < 1e-2  # Adam makes a whole step of a rounding's sign
    train(plan_file(folder, "other", seed=2), 1)
    assert far_apart(folder / "first-1", folder / "other") > 1e-1


@pytest.mark.slow
def test_one_and_two_processes_learn_the_same_later_stage_with_teachers(folder):
    first = plan_file(folder, "start")
    train(first, 1)
    for count in (1, 2):
        train(plan_file(folder, f"later-{count}", parent='"start"', **TEACHER), count)
    assert losses(folder / "later-2") == pytest.approx(losses(folder / "later-1"), rel=1e-4)
    assert far_apart(folder / "later-1", folder / "later-2") < 1e-3
    assert far_apart(folder / "start", folder / "later-1") > 1e-3


def test_rows_are_shared_out_and_gathered_in_one_order():
    rows = torch.arange(11).numpy()
    ordered = World(0, 2).order(rows)
    shares = [World(rank, 2).share(ordered) for rank in range(2)]
    assert torch.tensor(ordered).tolist() == [*shares[0], *shares[1]]
    assert sorted(ordered) == list(range(10))  # the odd one is left out
    assert ALONE.order(rows).tolist() == list(range(11))


def test_alone_nothing_is_replaced():
    module = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3))
    processes.share_norms(module, ALONE)
    assert isinstance(module[1], nn.BatchNorm1d)
    processes.share_norms(module, World(0, 2))
    assert isinstance(module[1], SharedBatchNorm)
    names = list(module.state_dict())
    processes.own_norms(module)
    assert list(module.state_dict()) == names
    assert isinstance(module[1], nn.BatchNorm1d)
