"""What else a device keeps on its disk: messages that wait, normal running, evidence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.bounded_folder import BoundedFolder, recordings
from edge.commissioning import Commissioning
from edge.outbox import Outbox
from lineside import wire
from lineside.channels import blocks
from lineside.clock import NS, SystemClock
from lineside.messages import Score
from lineside.recording import About, Recording
from lineside.windows import Samples
from tests.powercut.child import done_in_child
from tests.powercut.table import NEW, OLD, Row, Scene, say

MANY = 10**6
START_NS = 1_700_000_000 * NS
ABOUT = About(station="press", sensors={"mic0": "microphone"})


def score(seq: int) -> Score:
    """The score of a moment, with that number of epoch 1; an outbox gives it another."""
    return Score(
        device="edge-1",
        epoch=1,
        seq=seq,
        station="press",
        start_ns=seq,
        end_ns=seq + 1,
        evidence=1.0,
        p_value=0.5,
        limit=0.01,
        contributions={},
        without={},
        agreements={},
        modalities={},
        absent={},
        versions={},
        skew_ms=0.0,
    )


def outbox(folder: Path) -> Outbox:
    return Outbox(folder / "outbox.db", "edge-1", MANY, SystemClock())


def send(folder: Path) -> None:
    """Put two moments, forget the first that waits as if the hub had it, put another moment.

    A moment that was put may have been sent: its number must never stand for another.
    """
    box = outbox(folder)
    for moment in (2, 3):
        box.put([score(moment)])
        say(folder, f"put {moment}")
    say(folder, "forget 1")
    box.forget(box.epoch, [(1, 1)])
    say(folder, "forgot 1")
    box.put([score(4)])
    box.close()


def judge_outbox(folder: Path, said: list[str]) -> str:
    """All that was put and not acknowledged waits, under its own number; the file was not found damaged."""
    box = outbox(folder)
    assert not box.problem, box.problem
    waiting = {one.place: wire.decode(one.kind, one.payload).start_ns for one in box.pending(0, MANY)}
    box.close()
    assert all(place == moment for place, moment in waiting.items()), f"numbers were given twice: {waiting}"
    for line in said:
        what, moment = line.split()
        assert what != "put" or int(moment) in waiting, f"moment {moment} is gone"
        assert what != "forgot" or int(moment) not in waiting, f"moment {moment} is sent again"
    assert 1 in waiting or "forget 1" in said, "moment 1 is gone"
    return NEW if 4 in waiting else OLD


def send_again(folder: Path) -> None:
    """The next moment gets the next number."""
    box = outbox(folder)
    highest = max(box.places(MANY), default=1)
    box.put([score(9)])
    assert max(box.places(MANY)) == highest + 1
    box.close()


@contextlib.contextmanager
def sending(folder: Path) -> Iterator[Scene]:
    """One moment waits."""
    base = folder / "state"
    base.mkdir()

    def begin() -> None:
        box = outbox(base)
        box.put([score(1)])
        box.close()

    done_in_child(begin)
    yield Scene(base, send, judge_outbox, send_again)


def commissioned(moments: int) -> Commissioning:
    windows: list[dict[str, NDArray[np.generic]]] = [{"mic0": np.full((4, 8), i, np.float32)} for i in range(moments)]
    return Commissioning({"mic0": "microphone"}, {"mic0": "0" * 64}, windows, list(range(moments)), [""] * moments)


def save(moments: int, folder: Path) -> None:
    commissioned(moments).save(folder / "state" / "commissioning.npz")


def judge_commissioning(folder: Path, _: list[str]) -> str:
    """What is kept can be read, all of it."""
    known = Commissioning.load(folder / "state" / "commissioning.npz")
    assert len(known.moments) in (50, 60)
    assert all((moment["mic0"] == i).all() for i, moment in enumerate(known.moments))
    return OLD if len(known.moments) == 50 else NEW


@contextlib.contextmanager
def learning(folder: Path) -> Iterator[Scene]:
    """A device that was commissioned before."""
    done_in_child(partial(save, 50, folder / "device"))
    yield Scene(folder / "device", partial(save, 60), judge_commissioning, partial(save, 60))


def keep(second: int, folder: Path) -> None:
    """A device that starts, and keeps one second of sound; what a killed one left is finished first."""
    kept = BoundedFolder(folder / "evidence", ABOUT, MANY)
    kept.tidy()
    begin_ns = START_NS + second * NS
    kept.begin(f"{second}.mcap", begin_ns)
    sound = np.random.default_rng(second).integers(-999, 999, 16_000).astype(np.int16)
    for i, part in enumerate(np.split(sound, 4)):
        run = Samples("mic0", "microphone", begin_ns + i * NS // 4, 16_000.0, part)
        for made in blocks(run):
            kept.append(made)
    kept.finish()


def judge_evidence(folder: Path, _: list[str]) -> str:
    """Every file that has its name is whole; what was kept before is there."""
    files = recordings(folder / "evidence")
    for file in files:
        read = Recording(file)
        assert sum(len(run.data) for run in read.samples()) == 16_000, f"{file.name} is cut"
        assert not read.problem, read.problem
    names = [file.name for file in files]
    assert names in (["1.mcap"], ["1.mcap", "2.mcap"]), names
    return OLD if len(names) == 1 else NEW


@contextlib.contextmanager
def keeping(folder: Path) -> Iterator[Scene]:
    """A device that kept evidence before."""
    base = folder / "state"
    done_in_child(partial(keep, 1, base))
    yield Scene(base, partial(keep, 2), judge_evidence, partial(keep, 3))


ROWS = (
    Row("outbox: put and forget", "nothing put is lost before it is acknowledged, no number is given twice", sending),
    Row("normal running learned anew", "the old or the new can be read", learning),
    Row("evidence", "what has its name is whole; the rest is finished or removed", keeping),
)
