"""A whole plant to strike: mosquitto, the hub's ingest, an agent and its uplink, each a process, and a network camera.

What was accepted is what a device's outbox has numbered: the hub must have each number once, or a tombstone for it, or
the outbox must still hold it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench.real_sensors import CameraServer, jpegs
from edge.config import DeviceConfig, DeviceSettings
from edge.sensors.simulation import pictures
from hub.store import Store, database_url
from lineside import wire
from lineside.errors import WireError
from lineside.messages import Health, Score
from tests.line_broker import LineBroker, wait
from tests.line_device import SENSORS, SITE, install, record

NAME = "edge-1"

DEVICE = """
[device]
id = "edge-1"
site = "{site}"
station = "press"
state_dir = "{state}"
[[sensors]]
name = "cam0"
modality = "camera"
source = "camera"
device = "{camera}"
stall_s = 1.0
[[sensors]]
name = "mic0"
modality = "microphone"
source = "simulation"
[broker]
host = "{host}"
port = {port}
username = "edge-1"
password_file = "secrets/edge-1.password"
[commissioning]
recording = "normal.mcap"
"""


@dataclass
class Plant:
    """The parts, and what they have to account for. `state` is the device's state folder (anywhere).

    `before_agent` is what runs the agent's command, `space` what puts it elsewhere.
    """

    folder: Path
    broker: LineBroker
    camera: CameraServer
    state: Path
    split: bool = False
    before_agent: list[str] = field(default_factory=lambda: ["-m", "lineside"])
    space: list[str] = field(default_factory=list)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start one part anew: `hub`, `agent` or `uplink`."""
        edge = [*(self.before_agent if name == "agent" else ["-m", "lineside"]), "edge"]
        link = ["--socket", str(self.folder / "agent.sock")] if self.split else []
        command = {
            "hub": ["-m", "tests.faults.hub", str(self.folder)],
            "agent": [*edge, "run", "--config", str(self.folder / "device.toml"), *link],
            "uplink": [*edge, "uplink", "--config", str(self.folder / "device.toml"), *link],
        }[name]
        with (self.folder / f"{name}.log").open("ab") as log:
            space = self.space if name == "agent" else []
            made = subprocess.Popen([*space, sys.executable, *command], stderr=log)
        self.processes[name] = made
        return made

    def end(self, name: str, how: int = signal.SIGTERM) -> None:
        """End one part and wait for it."""
        self.processes[name].send_signal(how)
        self.processes[name].wait(30)

    def pid(self, name: str) -> int:
        """The process of a part, `broker` and `capture` (the camera's own process) among them."""
        if name == "broker":
            assert self.broker.process.pid is not None
            return self.broker.process.pid
        if name == "capture":
            agent = self.processes["agent"].pid
            assert wait(lambda: capture_of(agent), 15), "no capture process"
            return capture_of(agent)[0]
        return self.processes[name].pid

    def close(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
        self.camera.close()
        self.broker.stop()

    # what the hub knows

    @contextlib.contextmanager
    def store(self) -> Iterator[Store]:
        store = Store(database_url("sqlite:///hub.db", self.folder))
        try:
            yield store
        finally:
            store.close()

    def newest(self) -> Score | None:
        """The newest score at the hub."""
        with self.store() as store:
            scores = store.scores(NAME, limit=1)
        return scores[-1] if scores else None

    def health(self) -> Health | None:
        """The device's last word about itself."""
        with self.store() as store:
            return store.latest_health([NAME]).get(NAME)

    def whole(self, after_ns: int) -> bool:
        """Whether a moment that began after `after_ns` was scored with both sensors."""
        newest = self.newest()
        return newest is not None and newest.start_ns > after_ns and set(newest.contributions) == {"cam0", "mic0"}

    def newest_ns(self) -> int:
        """When the newest scored moment began; 0 without one."""
        newest = self.newest()
        return newest.start_ns if newest else 0

    def told(self, words: str, within_s: float) -> bool:
        """Whether the device says so among its problems."""
        return wait(lambda: (h := self.health()) is not None and any(words in one for one in h.problems), within_s)

    def back_s(self, within_s: float, now_ns: int = 0) -> float | None:
        """Seconds until a moment that began from now on was scored with both sensors; None when that took too long."""
        begun, now_ns = time.monotonic(), now_ns or time.time_ns()
        return round(time.monotonic() - begun, 1) if wait(lambda: self.whole(now_ns), within_s + 15) else None

    def account(self) -> tuple[int, int]:
        """Messages lost and duplicated, once what waits has been delivered and the agent has ended."""
        wait(lambda: len(self.waiting()) < 20, 60)
        self.end("agent")
        wait(lambda: len(self.waiting()) < 20, 5)
        held = self.waiting()
        with self.store() as store:
            lost = sum(
                (epoch, seq) not in held
                for epoch, ranges in store.gaps(NAME).items()
                for first, last in ranges
                for seq in range(first, last + 1)
            )
            moments = [score.start_ns for score in store.scores(NAME, limit=1_000_000)]
        return lost, len(moments) - len(set(moments))

    def waiting(self) -> set[tuple[int, int]]:
        """Epoch and number of every message in the outbox file that the hub has not."""
        places = set()
        file = f"file:{self.state / 'outbox.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(file, uri=True)) as db, contextlib.suppress(sqlite3.DatabaseError):
            for kind, payload in db.execute("SELECT kind, payload FROM outbox"):
                with contextlib.suppress(WireError):
                    message = wire.decode(kind, payload)
                    places.add((message.epoch, message.seq))
        return places


def capture_of(agent: int) -> list[int]:
    """The agent's capture processes."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and b"edge.sensors.child" in (entry / "cmdline").read_bytes():
                found += [int(entry.name)] * (parent_of(int(entry.name)) == agent)
    return found


@contextlib.contextmanager
def running(
    folder: Path,
    split: bool = False,
    state: Path | None = None,
    more: str = "",
    before_agent: list[str] | None = None,
    network: tuple[str, str] | None = None,
) -> Iterator[Plant]:
    """A plant that works: both sensors were scored. `more` is added to the device file.

    `network` is a name space that the agent is to live in, and our address as seen from there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    broker, camera = LineBroker(folder, NAME), CameraServer(jpegs(pictures(10_000, 60, 1, "a")))
    (folder / "plant.json").write_bytes(msgspec.json.encode(broker.plant))
    state = state or folder / "state"
    install(state)
    config = DeviceConfig(device=DeviceSettings(id=NAME, site=SITE, station="press"), sensors=SENSORS)
    record(folder / "normal.mcap", config, 45)
    host, ports = "127.0.0.1", [broker.plant.broker.port, camera.port]
    if network:
        host = network[1]
        ports = [forward(host, port) for port in ports]
    url = f"http://{host}:{ports[1]}/cam.mjpg"
    text = DEVICE.format(site=SITE, camera=url, host=host, port=ports[0], state=state)
    (folder / "device.toml").write_text(text + more)
    plant = Plant(folder, broker, camera, state, split)
    plant.before_agent = before_agent or plant.before_agent
    if network:
        plant.space = ["ip", "netns", "exec", network[0]]
    try:
        plant.start("hub")
        plant.start("agent")
        if split:
            plant.start("uplink")
        if not wait(lambda: plant.whole(0)):
            raise AssertionError(f"the plant does not start: {(folder / 'agent.log').read_text()[-2000:]}")
        yield plant
    finally:
        plant.close()


def forward(host: str, port: int) -> int:
    """A plain TCP relay from a free port of `host` to a port of this machine."""
    listening = socket.create_server((host, 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                came, _ = listening.accept()
                try:
                    onward = socket.create_connection(("127.0.0.1", port))
                except OSError:
                    came.close()
                    continue
                for pair in ((came, onward), (onward, came)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return int(listening.getsockname()[1])


def resources() -> dict[str, int]:
    """What this process holds: processes, threads, descriptors, shared memories."""
    gc.collect()  # what earlier work left would go at any moment
    children = 0
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            children += entry.name.isdigit() and parent_of(int(entry.name)) == os.getpid()
    return {
        "processes": children,
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "memories": Path("/proc/self/maps").read_text().count("memfd:lineside"),
    }


def parent_of(pid: int) -> int:
    """The process that started this one. Raises OSError when it is gone."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
