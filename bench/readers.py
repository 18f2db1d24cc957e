"""What it costs to take messages from the broker: hub.subscriber beside paho and gmqtt, in turns, nothing stored.

    python -m bench.readers

Each reader tells devices of every hundredth message that it has come, as the hub does of a batch. gmqtt is left out
where it is not installed (pip install gmqtt).
"""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import statistics
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hub.bench.line import Line, begin, cpu_s, publish, running, sent
from hub.ingest import filters
from hub.packets import Publish
from hub.subscriber import Subscriber
from lineside import mqtt, topics, wire
from lineside.clock import SystemClock
from lineside.messages import Ack
from lineside.mqtt import BrokerConfig

MESSAGES, DEVICES, TURNS, EVERY = 40_000, 8, 3, 100
Send = Callable[[str, bytes], object]


class Tally:
    """Counts messages by topic and answers every hundredth."""

    def __init__(self, site: str, send: Send) -> None:
        self._site, self._send = site, send
        self._came: Counter[str] = Counter()

    def hear(self, topic: str) -> None:
        self._came[topic] += 1
        if (came := self._came[topic]) % EVERY == 0:
            device = topics.parse(topic)[1]
            ack = Ack(device=device, epoch=1, ranges=[(came - EVERY + 1, came)])
            self._send(topics.name(self._site, device, "ack"), wire.encode(ack))


def ours(config: BrokerConfig, site: str, base: Path) -> None:
    tally: Tally

    def take(messages: Sequence[Publish]) -> int:
        for message in messages:
            tally.hear(message.topic.decode())
        return len(messages)

    reader = Subscriber(config, base, "reader", filters(site, shared=False), take, SystemClock())
    tally = Tally(site, lambda topic, payload: reader.publish([(topic.encode(), payload)]))
    reader.start()
    while not reader.connected:
        SystemClock().sleep(0.01)
    ready()


def paho(config: BrokerConfig, site: str, base: Path) -> None:
    client = mqtt.client(config, "reader", base)
    tally = Tally(site, lambda topic, payload: client.publish(topic, payload, qos=1))
    client.on_message = lambda _client, _data, message: tally.hear(message.topic)
    client.on_connect = lambda c, *_: c.subscribe([(each, 1) for each in filters(site, shared=False)])
    client.on_subscribe = lambda *_: ready()
    mqtt.connect(client, config)


def gmqtt(config: BrokerConfig, site: str, base: Path) -> None:
    from gmqtt import Client  # type: ignore[import-not-found,unused-ignore] # installed for this comparison alone

    async def serve() -> None:
        client = Client("reader", receive_maximum=1000)
        client.set_auth_credentials(config.username, mqtt.password(config, base))
        tally = Tally(site, lambda topic, payload: client.publish(topic, payload, qos=1))

        async def hear(_client: Any, topic: str, *_: Any) -> int:
            tally.hear(topic)
            return 0

        client.on_message = hear
        client.on_connect = lambda c, *_: [c.subscribe(each, qos=1) for each in filters(site, shared=False)]
        client.on_subscribe = lambda *_: ready()
        await client.connect(config.host, config.port)
        await asyncio.Event().wait()

    threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()


READERS: dict[str, Callable[[BrokerConfig, str, Path], None]] = {"hub.subscriber": ours, "paho": paho, "gmqtt": gmqtt}


def ready() -> None:
    print("ready", flush=True)


def read(name: str, port: int, site: str, secrets: Path) -> None:
    """Be one reader until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    READERS[name](BrokerConfig(port=port, username="hub", password_file="hub.password"), site, secrets)
    stop.wait()


def measure(name: str, folder: Path) -> tuple[float, float]:
    """Messages a second, and processor time of the reader in microseconds a message."""
    line = Line(folder, DEVICES, SystemClock())
    try:
        command = [sys.executable, "-m", "bench.readers", name, str(line.port), "bench", str(line.secrets)]
        with running(begin(command)) as process:
            before_s = cpu_s(process.pid)
            told = sent(publish(line.spec(MESSAGES // DEVICES)))
            used_s = cpu_s(process.pid) - before_s
    finally:
        line.stop()
    return told.acknowledged / told.seconds, used_s / told.acknowledged * 1e6


def main() -> None:
    names = [name for name in READERS if name != "gmqtt" or importlib.util.find_spec("gmqtt")]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="lineside-readers-") as folder:
        for turn in range(TURNS):
            for name in names:
                found[name].append(measure(name, Path(folder) / f"{name}{turn}"))
    print("| reader | messages/s | processor time a message |\n|---|---|---|")
    for name, runs in found.items():
        per_s, us = (statistics.median(each) for each in zip(*runs, strict=True))
        print(f"| {name} | {per_s:,.0f} | {us:.1f} us |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        read(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
    else:
        main()
