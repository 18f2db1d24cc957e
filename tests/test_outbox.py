"""Messages wait on disk, numbered without a gap, until they are acknowledged: edge.outbox."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from edge.outbox import Outbox
from lineside import wire
from lineside.clock import SimulatedClock
from lineside.messages import Alarm, Embedding, Embeddings, Tombstone

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
    assert (waiting.seq, box.epoch) == (4, epoch)
    message = wire.decode(waiting.kind, waiting.payload)
    assert (message.device, message.epoch, message.seq) == ("d", epoch, 4)


def test_only_what_was_acknowledged_is_forgotten(tmp_path):
    box = outbox(tmp_path)
    box.put([embeddings(i) for i in range(6)])
    assert box.forget(box.epoch, [(2, 3), (5, 5)]) == 3
    assert [w.seq for w in box.pending(0, 10)] == [1, 4, 6]
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
    present = {w.seq for w in waiting}
    assert covered | present == set(range(1, max(present) + 1))
    assert not covered & present
    assert box.dropped == len(covered) - sum(1 for n in covered if n in _tombstones(covered, told))


def _tombstones(covered, told):
    """Numbers that belonged to tombstones which were themselves buried."""
    lost_embeddings = 600 - sum(isinstance(t, Embeddings) for t in told)
    return set(sorted(covered)[: len(covered) - lost_embeddings])


def test_a_failed_transaction_leaves_numbers_and_counts_as_they_were(tmp_path):
    box = outbox(tmp_path)
    box.put([embeddings(0)])
    with pytest.raises(TypeError):
        box.put([embeddings(1), object()])
    box.put([embeddings(2)])
    assert [w.seq for w in box.pending(0, 10)] == [1, 2]
    assert box.messages == 2


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
        rows = sqlite3.connect(path).execute("SELECT seq FROM outbox ORDER BY seq").fetchall()
        assert len(rows) >= told
        assert all(b[0] - a[0] == 1 for a, b in pairwise(rows))
    assert os.path.getsize(path) > 0
