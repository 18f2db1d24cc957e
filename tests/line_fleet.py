"""A plant whose devices are simulated (bench.fleet): real broker, real signed repository over HTTP, real commands."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from bench.fleet import Device, Fleet
from deploy import begin
from deploy.__main__ import app
from hub.broker import Broker
from lineside import config
from lineside.clock import SystemClock
from lineside.plant import PlantConfig
from tests.line_port import free_port

SHORT = """
[rollout]
percents = [50, 100]
soak_min = 0

[rollout.terms]
shadow_s = 0.2
probation_s = 0.2
"""


class Served(http.server.SimpleHTTPRequestHandler):
    """The plant's folder over HTTP, without a word in the log."""

    def log_message(self, *_: object) -> None:
        pass


class Plant:
    """`devices` come with `come`; whatever runs is ended by `close`. With `hub` somebody else serves and brokers."""

    def __init__(
        self, folder: Path, *devices: str, modalities: tuple[str, ...] = ("camera",), rollout: str = SHORT
    ) -> None:
        self.folder, self.file, clock = folder, folder / "plant.toml", SystemClock()
        begin.begin(folder, begin.Asked("line1", devices, modalities, free_port(), free_port(), False), clock)
        with self.file.open("a") as file:
            file.write(rollout)
        self.config = config.load(self.file, PlantConfig)
        self.broker = Broker(self.config, folder, clock)
        self.broker.start()
        handler = functools.partial(Served, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer((self.config.hub.host, self.config.hub.port), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self._fleets: list[Fleet] = []

    def come(self, *names: str, fails_at: int = 0) -> list[Device]:
        """Let devices come."""
        states = self.folder / "devices"
        clock = SystemClock()
        made = [Device(self.config, self.folder, name, states / name, clock, fails_at=fails_at) for name in names]
        self._fleets.append(Fleet(made, clock, workers=2).__enter__())
        for device in made:
            device.come()
        return made

    def lineside(self, *words: object) -> Any:
        """What a `lineside deploy` command prints with --json; its errors are raised."""
        asked = [*(str(word) for word in words), "--config", str(self.file), "--json"]
        result = CliRunner().invoke(app, asked, standalone_mode=False)
        if result.exception:
            raise result.exception
        return json.loads(result.stdout)

    def runs(self) -> dict[str, str]:
        """The camera's version on each device, as it says signed."""
        rows = self.lineside("status")
        return {row["device"]: row["running"] for row in rows if row["modality"] == "camera" and row["verified"]}

    def close(self) -> None:
        for fleet in self._fleets:
            fleet.__exit__()
        self._server.shutdown()
        self._server.server_close()
        self.broker.stop()
