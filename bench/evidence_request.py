"""A recording on its way from a device to the hub: how fast it comes, and how long alarms take meanwhile.

`python -m bench.evidence_request --mb 30` runs a real broker, a device's outbox, uplink and delivery, and the hub's
ingest; alarms are raised ten times a second, first alone, then while the recording is brought again and again. Prints
a table in Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from edge.config import DeviceConfig, DeviceSettings, EvidenceSettings, SensorSettings
from edge.delivery import Delivery
from edge.outbox import Outbox
from edge.requests import finished
from edge.uplink import Uplink
from hub.broker import Broker
from hub.evidence import fetch
from hub.evidence.partial import Partial
from hub.ingest import Ingest
from hub.tables import Row
from lineside.clock import NS, SystemClock
from lineside.errors import LinesideError
from lineside.messages import Alarm, Command
from lineside.plant import BrokerProcess, PlantConfig

DEVICE, NAME = "edge-1", "20231114T221325.000Z-anomaly-press.mcap"
EVERY_S = 0.1


class Kept:
    """When each alarm came, in the place of a store."""

    def __init__(self) -> None:
        self.came_ns: dict[int, int] = {}

    def add(self, rows: Sequence[Row]) -> int:
        """An edge of the hub that only looks at the clock."""
        now_ns = SystemClock().now_ns()
        self.came_ns.update({row.values["time_ns"]: now_ns for row in rows})
        return len(rows)


class Line:
    """A broker, a device and a hub's ingest in a folder."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, mb: float, kb_s: float) -> None:
        self.folder, self.clock, self.kept = folder, SystemClock(), Kept()
        (folder / "secrets").mkdir()
        for user in ("hub", "operator", DEVICE):
            (folder / "secrets" / f"{user}.password").write_text(f"secret of {user}")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.plant = PlantConfig(site="bench", devices=[DEVICE], broker=BrokerProcess(port=port))
        broker = Broker(self.plant, folder, self.clock)
        broker.start()
        stack.callback(broker.stop)
        config = DeviceConfig(
            device=DeviceSettings(id=DEVICE, site="bench", station="press"),
            sensors=[SensorSettings(name="cam0", modality="camera", source="simulation")],
            broker=self.plant.connection(DEVICE),
            evidence=EvidenceSettings(send="request", send_kb_s=kb_s),
        )
        kept = folder / "evidence" / NAME
        kept.parent.mkdir()
        kept.write_bytes(os.urandom(round(mb * 1e6)))
        self.outbox = Outbox(folder / "outbox.db", DEVICE, 10**9, self.clock)
        stack.callback(self.outbox.close)
        self.delivery = Delivery(config, folder, self.clock)
        self.uplink = Uplink(config, folder, self.outbox, self.clock, self._asked, piece=self.delivery.piece)
        self.uplink.start()
        stack.callback(self.uplink.stop)
        ingest = Ingest("bench", self.plant.connection("hub"), folder, self.kept, clock=self.clock)
        ingest.start()
        stack.callback(ingest.stop)
        while not (ingest.connected and self.uplink.connected.is_set()):
            self.clock.sleep(0.05)

    def _asked(self, command: Command) -> None:
        try:
            self.delivery.ask(command.args["recording"], command.args["offset"])
            self.uplink.report(finished(command))
        except LinesideError as error:
            self.uplink.report(finished(command, str(error)))
        self.uplink.wake()

    def alarms(self, goes_on: Callable[[], bool]) -> list[float]:
        """Raise alarms while it goes on; milliseconds that each took to the hub."""
        raised = []
        while goes_on():
            raised.append(self.clock.now_ns())
            self.outbox.put([_alarm(raised[-1])])
            self.uplink.wake()
            self.clock.sleep(EVERY_S)
        while not set(raised) <= set(self.kept.came_ns):
            self.clock.sleep(0.05)
        return [(self.kept.came_ns[at] - at) / 1e6 for at in raised]

    def bring(self, times: int, took_s: list[float]) -> None:
        """The recording, so many times."""
        source = fetch.Line(self.plant, self.folder, self.clock)
        for number in range(times):
            path = self.folder / f"hub-{number}" / NAME
            began_ns = self.clock.now_ns()
            fetch.fetch(source, DEVICE, Partial(path, DEVICE, 10**10), NAME, lambda: False)
            took_s.append((self.clock.now_ns() - began_ns) / NS)


def _alarm(now_ns: int) -> Alarm:
    return Alarm(
        device=DEVICE, station="press", key=f"{DEVICE}/{now_ns}", kind="anomaly", state="raised", subject="press",
        top_sensor="cam0", top_modality="camera", onset_ns=now_ns, time_ns=now_ns, p_value=1e-4, evidence=9.0,
        contributions={"cam0": 9.0}, versions={}, limits={}, text="made up", pictures={"cam0": bytes(8000)},
    )  # fmt: skip


def row(what: str, found: list[float]) -> str:
    """A line of the table."""
    middle, late, last = np.quantile(found, [0.5, 0.99, 1.0])
    return f"| {what} | {len(found)} | {middle:.0f} | {late:.0f} | {last:.0f} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=float, default=30.0, help="size of the recording")
    parser.add_argument("--times", type=int, default=3, help="how often it is brought")
    parser.add_argument("--kb-s", type=float, default=msgspec.structs.fields(EvidenceSettings)[-1].default)
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lineside-bench-")))
        line = Line(folder, stack, asked.mb, asked.kb_s)
        until_ns = line.clock.now_ns() + 20 * NS
        alone = line.alarms(lambda: line.clock.now_ns() < until_ns)
        took_s: list[float] = []
        bringing = threading.Thread(target=line.bring, args=(asked.times, took_s))
        bringing.start()
        beside = line.alarms(bringing.is_alive)
        bringing.join()
    each = ", ".join(f"{one:.1f}" for one in took_s)
    print(f"{asked.mb:g} MB at most {asked.kb_s:g} kB/s: brought in {each} s\n")
    print("| alarms, ms to the hub | n | median | 99 % | longest |\n|---|---|---|---|---|")
    print(row("alone", alone))
    print(row("while a recording comes", beside))


if __name__ == "__main__":
    main()
