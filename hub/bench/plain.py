"""What a hub is measured against: paho's callback, a queue, sqlite3 in batches, nothing else.

The same promises on the disk and the same word to the device after the commit, but no columns for queries, no index, no
check of a message, no fairness, no reconnection. `python -m hub.bench.plain PORT SITE SECRETS DATABASE`.
"""

from __future__ import annotations

import queue
import signal
import sqlite3
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec

from hub.store import PRAGMAS
from lineside import mqtt, topics, wire
from lineside.messages import Ack, Score
from lineside.mqtt import BrokerConfig

BATCH = 500


def main(port: int, site: str, secrets: Path, database: Path) -> None:
    """Store until SIGTERM."""
    waiting: queue.Queue[tuple[str, int, int, bytes]] = queue.Queue()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    config = BrokerConfig(port=port, username="hub", password_file="hub.password")
    client = mqtt.client(config, "plain", secrets)
    decoder = msgspec.json.Decoder(Score)

    def take(_client: Any, _data: Any, message: Any) -> None:
        score = decoder.decode(message.payload)
        waiting.put((score.device, score.epoch, score.seq, message.payload))

    client.on_message = take
    client.on_connect = lambda c, *_: c.subscribe(topics.everything(site, "+", "score"), 1)
    client.on_subscribe = lambda *_: print("ready", flush=True)
    mqtt.connect(client, config)
    with sqlite3.connect(database) as store:
        for pragma in PRAGMAS:
            store.execute(pragma)
        store.execute("CREATE TABLE scores (device, epoch, seq, body, PRIMARY KEY (device, epoch, seq)) WITHOUT ROWID")
        while not stop.is_set():
            if batch := _batch(waiting):
                store.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?)", batch)
                store.commit()
                for ack in _acks(batch):
                    client.publish(topics.name(site, ack.device, "ack"), wire.encode(ack), qos=1)
    client.disconnect()
    client.loop_stop()


def _batch(waiting: queue.Queue[tuple[str, int, int, bytes]]) -> list[tuple[str, int, int, bytes]]:
    """What waits, up to 500; the first one is waited for."""
    batch: list[tuple[str, int, int, bytes]] = []
    try:
        batch.append(waiting.get(timeout=0.1))
        while len(batch) < BATCH:
            batch.append(waiting.get_nowait())
    except queue.Empty:
        pass
    return batch


def _acks(batch: list[tuple[str, int, int, bytes]]) -> list[Ack]:
    """One for each device; its numbers come in order, without a gap."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for device, _, seq, _ in batch:
        numbers[device].append(seq)
    return [Ack(device=device, epoch=1, ranges=[(min(seqs), max(seqs))]) for device, seqs in numbers.items()]


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
