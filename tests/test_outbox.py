"""Messages wait on disk, numbered without a gap, until they are acknowledged: edge.outbox."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from edge import pages, salvage
from edge.outbox import Outbox
from edge.shelf import OLDEST, PAGE_BYTES, About, Shelf
from lineside import wire
from lineside.clock import NS, SimulatedClock
from lineside.messages import Alarm, Embedding, Embeddings, NormalMoment, Score, Tombstone

BIG = 10**9


def embeddings(i=0, size=256):
    made = [Embedding("cam0", "camera", "1", "s", bytes(size))]
    return Embeddings(device="d", station="s", start_ns=i, end_ns=i + 1, embeddings=made)


def alarm(key="k"):
    return Alarm(
        device="d",
        station="s",
        key=key,
        kind="anomaly",
        state="raised",
        subject="s",
        top_sensor="cam0",
        top_modality="camera",
        onset_ns=0,
        time_ns=1,
        p_value=0.001,
        evidence=9.0,
        contributions={},
        versions={},
        limits={},
        text="",
    )


def score(i=0):
    return Score(
        device="d",
        station="s",
        start_ns=i,
        end_ns=i + 1,
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


def outbox(tmp_path, max_bytes=BIG):
    return Outbox(tmp_path / "outbox.db", "d", max_bytes, SimulatedClock(5))


def test_numbers_have_no_gap_and_go_on_after_a_restart(tmp_path):
    box = outbox(tmp_path)
    box.put([embeddings(i) for i in range(3)])
    box.forget(box.epoch, [(1, 3)])
    epoch = box.epoch
    box.close()
    box = outbox(tmp_path)
    box.put([embeddings(3)])
    [waiting] = box.pending(0, 10)
    assert (waiting.place, box.epoch) == (4, epoch)
    message = wire.decode(waiting.kind, waiting.payload)
    assert (message.device, message.epoch, message.seq) == ("d", epoch, 4)


def test_only_what_was_acknowledged_is_forgotten(tmp_path):
    box = outbox(tmp_path)
    box.put([embeddings(i) for i in range(6)])
    assert box.forget(box.epoch, [(2, 3), (5, 5)]) == 3
    assert [w.place for w in box.pending(0, 10)] == [1, 4, 6]
    assert box.forget(box.epoch + 1, [(1, 6)]) == 0  # another life of the device
    assert box.messages == 3
    assert box.bytes == sum(len(w.payload) for w in box.pending(0, 10))


def test_a_full_outbox_drops_embeddings_first_never_alarms_and_accounts_for_all(tmp_path):
    box = outbox(tmp_path, max_bytes=60_000)
    for i in range(600):
        box.put([embeddings(i), alarm(f"k{i}")] if i % 50 == 0 else [embeddings(i)])
    waiting = box.pending(0, 10_000)
    assert box.bytes <= 60_000
    assert sum(w.kind == "alarm" for w in waiting) == 12
    told = [wire.decode(w.kind, w.payload) for w in waiting]
    covered = {n for t in told if isinstance(t, Tombstone) for first, last in t.ranges for n in range(first, last + 1)}
    present = {w.place for w in waiting}
    assert covered | present == set(range(1, max(present) + 1))
    assert not covered & present
    assert box.dropped == {"full": 600 - sum(isinstance(t, Embeddings) for t in told)}
    assert 200 < box.dropped["full"] < 600


def test_a_failed_transaction_leaves_numbers_and_counts_as_they_were(tmp_path):
    box = outbox(tmp_path)
    box.put([embeddings(0)])
    with pytest.raises(TypeError):
        box.put([embeddings(1), object()])
    box.put([embeddings(2)])
    assert [w.place for w in box.pending(0, 10)] == [1, 2]
    assert box.messages == 2


def accounted(box, epoch=None):
    """Numbers of an epoch that wait, and those that waiting tombstones stand for."""
    told = [wire.decode(w.kind, w.payload) for w in box.pending(OLDEST, 10**6)]
    epoch = box.epoch if epoch is None else epoch
    stones = [t for t in told if isinstance(t, Tombstone) and (t.of_epoch or t.epoch) == epoch]
    ranges = [n for t in stones for first, last in t.ranges for n in range(first, last + 1)]
    return {t.seq for t in told if t.epoch == epoch}, set(ranges)


def reasons(box):
    told = [wire.decode(w.kind, w.payload) for w in box.pending(OLDEST, 10**6) if w.kind == "tombstone"]
    return {t.reason for t in told}


def test_scores_go_after_embeddings_and_before_alarms(tmp_path):
    box = outbox(tmp_path, max_bytes=20_000)
    box.put([score(i) for i in range(20)])
    box.put([alarm(f"k{i}") for i in range(20)])
    box.put([embeddings(i) for i in range(40)])
    kinds = Counter(w.kind for w in box.pending(0, 1000))
    assert kinds == {"score": 20, "alarm": 20, "tombstone": 1}
    box.put([alarm(f"k{i}") for i in range(20, 100)])
    kinds = Counter(w.kind for w in box.pending(0, 1000))
    assert kinds == {"alarm": 100, "tombstone": 1}  # beyond the bound: no alarm is refused while the disk takes it
    assert box.bytes > 20_000
    waiting, covered = accounted(box)
    assert waiting | covered == set(range(1, max(waiting) + 1))


def test_a_tombstone_never_grows_beyond_what_the_hub_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(salvage, "RANGES", 50)
    box = outbox(tmp_path, max_bytes=100_000)
    for i in range(400):
        box.put([embeddings(i), alarm(f"k{i}")])
    told = [wire.decode(w.kind, w.payload) for w in box.pending(0, 10_000)]
    stones = [t for t in told if isinstance(t, Tombstone)]
    assert len(stones) > 3
    assert all(len(t.ranges) <= 50 for t in stones)
    waiting, covered = accounted(box)
    assert waiting | covered == set(range(1, max(waiting) + 1))


def test_what_is_too_old_is_dropped_alarms_are_not(tmp_path):
    clock = SimulatedClock(5)
    box = Outbox(tmp_path / "outbox.db", "d", BIG, clock, max_days=1.0)
    box.put([embeddings(0), score(0), alarm()])
    clock.sleep(80_000)
    box.put([embeddings(1)])
    clock.sleep(10_000)
    box.put([embeddings(2)])
    assert [w.kind for w in box.pending(0, 10)] == ["alarm", "embedding", "embedding", "tombstone"]
    assert (box.dropped, reasons(box)) == ({"age": 2}, {"age"})
    assert accounted(box) == ({3, 4, 5, 6}, {1, 2})


def test_age_counts_the_time_that_the_agent_ran_whatever_the_clock_says(tmp_path):
    """A Jetson without a battery begins in 1970 and learns the year later."""
    for start_s in (5, 1_700_000_000, 3, 1_800_000_000):
        clock = SimulatedClock(start_s * NS)
        box = Outbox(tmp_path / "outbox.db", "d", BIG, clock, max_days=1.0)
        box.put([embeddings(0)])
        clock.sleep(25_000)
        box.put([score(0)])
        box.close()
    assert box.dropped == {"age": 1}  # of the first life only, 100 000 s ago; each life left two messages
    clock = SimulatedClock(9)
    box = Outbox(tmp_path / "outbox.db", "d", BIG, clock, max_days=1.0)
    assert (box.messages, reasons(box)) == (8, {"age"})


def test_a_message_larger_than_the_hub_takes_does_not_stop_the_rest(tmp_path):
    box = outbox(tmp_path)
    normal = {"cam0": NormalMoment(0, bytes(wire.MAX_BYTES // 2))}
    big = msgspec.structs.replace(alarm("big"), pictures={"cam0": bytes(wire.MAX_BYTES // 2)}, like=normal)
    box.put([big, embeddings(0, size=wire.MAX_BYTES + 1), embeddings(1)])
    told = [wire.decode(w.kind, w.payload) for w in box.pending(0, 10)]
    assert [type(t).__name__ for t in told] == ["Alarm", "Tombstone", "Embeddings"]
    assert (told[0].key, told[0].pictures, told[0].like, told[1].ranges) == ("big", {}, {}, [(2, 2)])
    assert box.dropped == {"size": 1}


def test_alarms_are_a_lane_of_their_own(tmp_path):
    box = outbox(tmp_path)
    box.put([embeddings(0), alarm("a"), score(0), alarm("b")])
    assert [w.place for w in box.pending(OLDEST, 10, "alarms")] == [2, 4]
    assert [w.place for w in box.pending(OLDEST, 10, "rest")] == [1, 3]
    assert (box.places(1, "alarms"), box.places(10, "rest"), box.places(3)) == ([2], [1, 3], [1, 2, 3])


def test_what_a_disk_refused_is_accounted_for_and_its_alarms_are_kept(tmp_path, monkeypatch):
    box = outbox(tmp_path)
    box.put([embeddings(0)])

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Shelf, "add", full)
        for i in range(3):
            with pytest.raises(sqlite3.OperationalError):
                box.put([embeddings(1), score(i), alarm(f"k{i}")])
    assert box.messages == 1
    box.put([embeddings(2)])
    told = [wire.decode(w.kind, w.payload) for w in box.pending(0, 100)]
    assert [t.key for t in told if isinstance(t, Alarm)] == ["k0", "k1", "k2"]
    assert box.dropped == {"disk": 6}
    assert accounted(box) == ({1, 8, 9, 10, 11, 12}, {2, 3, 4, 5, 6, 7})


WRITER = """
import sys
from pathlib import Path
from edge.outbox import Outbox
from lineside.clock import SystemClock
from lineside.messages import Embedding, Embeddings
box = Outbox(Path(sys.argv[1]), "d", 10**9, SystemClock())
while True:
    box.put([Embeddings(device="d", station="s", start_ns=0, end_ns=1,
                        embeddings=[Embedding("cam0", "camera", "1", "s", bytes(64))])])
    print(box.messages, flush=True)
"""


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_stored(tmp_path):
    path, told = tmp_path / "outbox.db", 0
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        lines = [writer.stdout.readline() for _ in range(20)]
        time.sleep(0.01)
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
        writer.wait()
        told = max([told, *(int(line) for line in lines if line.endswith("\n") and line.strip())])
        rows = sqlite3.connect(path).execute("SELECT place FROM outbox ORDER BY place").fetchall()
        assert len(rows) >= told
        assert all(b[0] - a[0] == 1 for a, b in pairwise(rows))
    assert os.path.getsize(path) > 0


def damaged(tmp_path, harm, count=400):
    """An outbox of `count` messages, some acknowledged, whose file is harmed: what it held, what it is."""
    box = outbox(tmp_path)
    for i in range(count):
        box.put([embeddings(i), score(i)] if i % 2 else [embeddings(i, size=6000), alarm(f"k{i}")])
    box.forget(box.epoch, [(1, count // 5)])
    before = {w.place: w.payload for w in box.pending(OLDEST, 10**6)}
    epoch = box.epoch
    box.close()
    path = tmp_path / "outbox.db"
    data = bytearray(path.read_bytes())
    harm(data)
    path.write_bytes(data)
    return epoch, before, Outbox(path, "d", BIG, SimulatedClock(7))


def holds(epoch, before, box):
    """Nothing is changed, nothing is silently gone, and the numbers of the old epoch are not given again."""
    told = [wire.decode(w.kind, w.payload) for w in box.pending(OLDEST, 10**6)]
    saved = {t.seq: wire.encode(t) for t in told if t.epoch == epoch}
    assert all(before[seq] == payload for seq, payload in saved.items() if seq in before)
    waiting, covered = accounted(box, epoch)
    return saved, set(before) - waiting - covered


def page(data, number):
    return slice((number - 1) * PAGE_BYTES, number * PAGE_BYTES)


def leaf(data):
    """The first page that holds messages."""
    pages_ = range(1, len(data) // PAGE_BYTES + 1)
    return next(n for n in pages_ if len(list(pages.found_in(bytes(data[page(data, n)]), lambda _: b""))) > 1)


@pytest.mark.parametrize("harmed", ["head", "root", "middle", "junk", "short"])
def test_a_damaged_file_is_put_aside_and_what_can_be_read_of_it_goes_on_waiting(tmp_path, harmed):
    def harm(data):
        if harmed in {"head", "root", "middle"}:
            number = {"head": 1, "root": 3, "middle": leaf(data)}[harmed]
            data[page(data, number)] = bytes(PAGE_BYTES)
        elif harmed == "junk":
            data[page(data, leaf(data))] = random.Random(1).randbytes(PAGE_BYTES)
        else:
            del data[len(data) // 2 :]

    epoch, before, box = damaged(tmp_path, harm)
    total = len(before)
    box.put([embeddings(0)])
    box.pending(OLDEST, 10**6)  # a page in the middle is found when it is read
    saved, unaccounted = holds(epoch, before, box)
    assert not unaccounted
    assert len(saved) >= (total // 4 if harmed == "short" else total - 30)
    lost = total - len(set(saved) & set(before))
    assert box.dropped["damaged"] == lost
    assert box.epoch > epoch
    assert "was damaged" in box.problem
    assert "outbox.damaged.db" in box.problem
    assert (tmp_path / "outbox.damaged.db").exists()
    assert not list(tmp_path.glob("*.new"))
    assert box.forget(epoch, [(1, 10**6)]) == len(saved)  # the hub's word on the old epoch still counts
    assert {wire.decode(w.kind, w.payload).epoch for w in box.pending(OLDEST, 10**6)} == {box.epoch}


def test_what_was_not_yet_in_the_file_but_in_its_log_is_saved_too(tmp_path):
    box = outbox(tmp_path)
    box.put([embeddings(i) for i in range(10)])
    other = tmp_path / "copy" / "outbox.db"  # as after a power cut: the log was not brought into the file
    other.parent.mkdir()
    shutil.copy(tmp_path / "outbox.db-wal", other.with_name("outbox.db-wal"))
    other.write_bytes(bytes(len((tmp_path / "outbox.db").read_bytes()) * 3))
    saved = Outbox(other, "d", BIG, SimulatedClock(7))
    assert len(accounted(saved, box.epoch)[0]) == 10


def test_a_file_damaged_while_it_is_in_use_costs_no_further_message(tmp_path):
    box = outbox(tmp_path)
    box.put([embeddings(i, size=1000) for i in range(4000)])  # more than SQLite keeps in memory
    box.close()
    box = outbox(tmp_path)
    epoch = box.epoch
    with (tmp_path / "outbox.db").open("r+b") as file:
        data = file.read()
        file.seek((leaf(data) - 1) * PAGE_BYTES)
        file.write(bytes(PAGE_BYTES))
    for i in range(20):
        box.put([alarm(f"k{i}")])
    told = [wire.decode(w.kind, w.payload) for w in box.pending(OLDEST, 10**6)]
    assert [t.key for t in told if isinstance(t, Alarm)] == [f"k{i}" for i in range(20)]
    assert {t.seq for t in told if t.epoch == epoch} >= set(range(20, 4001))
    assert "malformed" in box.problem


def test_a_payload_that_the_disk_changed_is_not_sent(tmp_path):
    def harm(data):
        for at in (data.index(b'"key":"k130"'), data.index(b'"key":"k132"')):
            data[at + 8] = ord("x")

    epoch, before, box = damaged(tmp_path, harm)
    assert box.problem == ""  # the pages are well, only their contents are not
    waiting = box.pending(OLDEST, 10**6)
    assert not [w for w in waiting if b'"key":"x' in w.payload]
    assert box.epoch == epoch
    assert (box.dropped, reasons(box)) == ({"damaged": 2}, {"damaged"})
    present, covered = accounted(box)
    assert set(before) - present == covered


def test_a_file_that_is_damaged_again_keeps_all_its_epochs(tmp_path):
    epoch, before, box = damaged(tmp_path, lambda data: data.__setitem__(page(data, 1), bytes(PAGE_BYTES)), 40)
    box.put([embeddings(i) for i in range(5)])
    second = box.epoch
    box.close()
    path = tmp_path / "outbox.db"
    path.write_bytes(bytes(PAGE_BYTES) + path.read_bytes()[PAGE_BYTES:])
    box = Outbox(path, "d", BIG, SimulatedClock(3))  # a clock that went back makes no older epoch
    assert box.epoch > second > epoch
    assert accounted(box, epoch)[0] >= set(before)
    assert len(accounted(box, second)[0]) == 5
    assert [w.place for w in box.pending(OLDEST, 1000)] == sorted(w.place for w in box.pending(OLDEST, 1000))
    order = [wire.decode(w.kind, w.payload) for w in box.pending(OLDEST, 1000)]
    assert [(m.epoch, m.seq) for m in order] == sorted((m.epoch, m.seq) for m in order)
    box.put([embeddings(i) for i in range(3)])
    box.close()
    assert len(Outbox(path, "d", BIG, SimulatedClock(3)).pending(OLDEST, 1000)) == len(order) + 3
    assert len(list(tmp_path.glob("*.damaged*"))) == 1


def test_without_a_word_about_itself_a_file_gives_what_it_has(tmp_path):
    def harm(data):
        numbers = [n for n in range(1, len(data) // PAGE_BYTES + 1) if _has_about(bytes(data[page(data, n)]))]
        assert len(numbers) == 1
        data[page(data, numbers[0])] = bytes(PAGE_BYTES)

    epoch, before, box = damaged(tmp_path, harm)
    saved, unaccounted = holds(epoch, before, box)
    assert set(saved) >= set(before)
    assert not unaccounted
    assert box.epoch > epoch


def _has_about(data):
    return any(isinstance(found, About) for found in pages.found_in(data, lambda _: b""))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_whatever_a_disk_does_nothing_false_is_sent_and_the_outbox_goes_on(tmp_path, seed):
    dice = random.Random(seed)

    def harm(data):
        for _ in range(dice.choice([1, 1, 3, 20])):
            at, size = dice.randrange(len(data)), dice.choice([1, 4, 512, PAGE_BYTES, 30_000])
            data[at : at + size] = dice.choice([bytes(size), dice.randbytes(size)])[: len(data) - at]

    epoch, before, box = damaged(tmp_path, harm)
    box.put([alarm("after")])
    told = [wire.decode(w.kind, w.payload) for w in box.pending(OLDEST, 10**6)]
    for message in told:
        if message.epoch == epoch and message.seq in before and not isinstance(message, Tombstone):
            assert wire.encode(message) == before[message.seq]
    assert "after" in {m.key for m in told if isinstance(m, Alarm)}
    if box.problem:
        assert not holds(epoch, before, box)[1] - {0}
    left = box.pending(OLDEST, 10**6)
    box.close()
    assert Outbox(tmp_path / "outbox.db", "d", BIG, SimulatedClock(9)).pending(OLDEST, 10**6) == left


FULL = """
import shutil, sqlite3, sys
from pathlib import Path
from edge.outbox import Outbox
from lineside.clock import SystemClock
from tests.test_outbox import alarm, embeddings

folder = Path(sys.argv[1])
box = Outbox(folder / "outbox.db", "d", 10**9, SystemClock())
box.put([embeddings(i) for i in range(300)])
somebody = (folder / "somebody").open("wb", buffering=0)
try:
    while somebody.write(bytes(4096)):
        pass
except OSError:
    assert shutil.disk_usage(folder).free == 0
for i in range(4000):
    box.put([embeddings(i), alarm(f"k{i}")] if i % 4 == 0 else [embeddings(i)])
print(sum(w.kind == "alarm" for w in box.pending(0, 10**6)), box.dropped["full"], dict(box.dropped).keys() == {"full"})
"""


@pytest.mark.slow
def test_on_a_full_disk_alarms_are_still_stored(tmp_path):
    """A real tmpfs that somebody else has filled: the reserve gives room to drop."""
    mount = f"mount -t tmpfs -o size=8m full {tmp_path} && exec {sys.executable} -c '{FULL}' {tmp_path}"
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here: a small tmpfs cannot be mounted")
    here = Path(__file__).parent.parent
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, text=True, cwd=here, check=False)
    alarms, full, only_full = done.stdout.split() if done.stdout else pytest.fail(done.stderr)
    assert (int(alarms), only_full) == (1000, "True")
    assert int(full) > 3000
