"""A plant's own broker for tests: real mosquitto on a free port of this machine, everybody with a password."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from hub.broker import Broker
from lineside.clock import SystemClock
from lineside.plant import BrokerProcess, PlantConfig
from tests.line_device import SITE
from tests.line_port import free_port


def wait(condition: Callable[[], object], seconds: float = 120.0) -> bool:
    """Whether the condition came true in time: by default a time that a busy machine has."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


class LineBroker:
    """`stop` and `start` make an outage; the port and the passwords stay."""

    def __init__(self, folder: Path, *devices: str) -> None:
        self.folder = folder
        (folder / "secrets").mkdir()
        for user in ("hub", "operator", *devices):
            (folder / "secrets" / f"{user}.password").write_text(f"secret of {user}")
        self.plant = PlantConfig(site=SITE, devices=list(devices), broker=BrokerProcess(port=free_port()))
        self.start()

    def start(self) -> None:
        self.process = Broker(self.plant, self.folder, SystemClock())
        self.process.start()

    def stop(self) -> None:
        self.process.stop()
