"""A plant for the bench: its own broker, its devices and its hub, each a process of its own on this machine."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from hub.bench.publisher import Sent, Spec
from hub.broker import Broker
from lineside import config as toml
from lineside.clock import Clock
from lineside.errors import BrokerError
from lineside.plant import PlantConfig

SITE = "bench"
END_S = 30.0


class Line:
    """A plant folder with `devices` devices and a running broker; `stop` ends the broker.

    With `dashboard` the broker is the hub's own: `dashboard()` starts both.
    """

    def __init__(self, folder: Path, devices: int, clock: Clock, *, dashboard: bool = False) -> None:
        self.folder, self.devices = folder, [f"d{number}" for number in range(devices)]
        self.secrets = folder / "secrets"
        self.secrets.mkdir(parents=True)
        for user in ("hub", "operator", *self.devices):
            (self.secrets / f"{user}.password").write_text(secrets.token_hex(8))
        self.port, page = _free_ports()
        self.url = f"http://127.0.0.1:{page}"
        self.config = folder / "plant.toml"
        names = ", ".join(f'"{device}"' for device in self.devices)
        ports = f"[broker]\nport = {self.port}\n[hub]\nport = {page}\n"
        self.config.write_text(f'site = "{SITE}"\ndevices = [{names}]\n{ports}')
        self.database = folder / "hub.db"
        self._broker = None if dashboard else Broker(toml.load(self.config, PlantConfig), folder, clock)
        if self._broker is not None:
            self._broker.start()

    def stop(self) -> None:
        """End the broker."""
        if self._broker is not None:
            self._broker.stop()

    def spec(self, count: int, devices: list[str] | None = None) -> Spec:
        """What publishers are told, but for their pace."""
        names = self.devices if devices is None else devices
        return Spec(port=self.port, site=SITE, secrets=str(self.secrets), devices=names, count=count)

    def stored(self) -> int:
        """Scores in the hub's database."""
        with contextlib.closing(sqlite3.connect(self.database)) as database:
            found: int = database.execute("SELECT count(*) FROM scores").fetchone()[0]
            return found

    def hub(self) -> subprocess.Popen[str]:
        """`lineside hub ingest` on this plant, once it listens."""
        return begin([sys.executable, "-m", "lineside", "hub", "ingest", "--config", str(self.config), "--json"])

    def dashboard(self) -> subprocess.Popen[str]:
        """`lineside hub run` on this plant, once its pages are served."""
        return begin([sys.executable, "-m", "lineside", "hub", "run", "--config", str(self.config), "--json"])

    def plain(self, database: Path) -> subprocess.Popen[str]:
        """The plain consumer, once it listens."""
        said = [str(self.port), SITE, str(self.secrets), str(database)]
        return begin([sys.executable, "-m", "hub.bench.plain", *said])


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has used (proc(5), fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def begin(command: list[str]) -> subprocess.Popen[str]:
    """A process that has printed its first line. Raises BrokerError when it ends before."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if not process.stdout.readline():
        raise BrokerError(" ".join(command[1:4]), f"ended with {process.wait()} before it was ready", "see above")
    return process


def end(process: subprocess.Popen[str]) -> None:
    """SIGTERM, then patience."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Ends the process with the block."""
    try:
        yield process
    finally:
        end(process)


def publish(spec: Spec) -> subprocess.Popen[str]:
    """Publishers in a process of their own; `sent` waits for what they say."""
    said = msgspec.json.encode(spec).decode()
    return subprocess.Popen([sys.executable, "-m", "hub.bench.publisher", said], stdout=subprocess.PIPE, text=True)


def sent(publisher: subprocess.Popen[str]) -> Sent:
    """What publishers said at their end. Raises BrokerError when they failed."""
    told, _ = publisher.communicate()
    if publisher.returncode:
        raise BrokerError("hub.bench.publisher", f"ended with {publisher.returncode}", "see above")
    return msgspec.json.decode(told, type=Sent)
