"""The walk-through of `lineside deploy` in README, command by command as it stands there, on two simulated devices."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from bench.fleet import Device, Fleet
from lineside import config
from lineside.clock import SystemClock
from lineside.plant import PlantConfig
from tests import tiny_encoder
from tests.line_broker import wait
from tests.line_fleet import SHORT
from tests.line_port import free_port

ROOT = Path(__file__).parent.parent
LINESIDE = (sys.executable, "-m", "lineside")
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
SECTION = "## Roll out, ring by ring"

# After which command the story stands where, in its order: what the rollout's state is, what cameras run.
EXPECTED: dict[str, tuple[str, dict[str, int]]] = {
    "deploy rollout start": ("approval", {"edge-1": 2, "edge-2": 1}),
    "deploy rollout status": ("approval", {"edge-1": 2, "edge-2": 1}),
    "deploy rollout promote": ("finished", {"edge-1": 2, "edge-2": 2}),
    "deploy rollback": ("", {"edge-1": 1, "edge-2": 1}),
    "deploy rollout start again": ("open", {}),
    "deploy rollout pause": ("paused", {}),
    "deploy rollout resume": ("open", {}),
    "deploy rollout abort": ("aborted", {"edge-1": 1, "edge-2": 1}),
}


def commands() -> list[list[str]]:
    """The commands of the section, without their comments."""
    section = (ROOT / "README.md").read_text().split(SECTION)[1].split("\n## ")[0]
    return [shlex.split(line, comments=True)[1:] for line in section.splitlines() if line.startswith("    lineside ")]


class Story:
    """The plant folder, and what has been started for it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.rollouts = 0
        (folder / "bundles").mkdir()
        for name, version in (("camera", 1), ("microphone", 1), ("camera", 2)):
            tiny_encoder.write(folder / "bundles", name, version)

    @property
    def plant(self) -> PlantConfig:
        return config.load(self.folder / "plant" / "plant.toml", PlantConfig)

    def tell(self, words: list[str]) -> Any:
        """Run one command as README has it, but with free ports, rings that are short, and a moment that is now."""
        if words[:2] == ["hub", "run"]:
            return self._start_hub(words)
        ports = ["--mqtt-port", str(free_port()), "--hub-port", str(free_port())] if "init" in words else []
        now = datetime.now().isoformat(timespec="seconds")
        said = [now if before == "--at" else word for before, word in zip(["", *words], words, strict=False)]
        command = [*LINESIDE, *said, *ports, "--json"]
        done = subprocess.run(command, cwd=self.folder, env=ENV, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{said}: {done.stderr}"
        if "init" in words:
            with (self.folder / "plant" / "plant.toml").open("a") as file:
                file.write(SHORT)
        return json.loads(done.stdout)

    def come(self) -> None:
        """Let the two devices come."""
        clock, base = SystemClock(), self.folder / "plant"
        devices = [Device(self.plant, base, name, self.folder / name, clock) for name in self.plant.devices]
        self._stack.enter_context(Fleet(devices, clock, workers=2))
        for device in devices:
            device.come()

    def cameras(self) -> dict[str, int]:
        """Versions by device as the hub's API tells that they ran now."""
        found = {}
        for device in self.plant.devices:
            path = f"/api/ran?device={device}&at_ns={SystemClock().now_ns()}"
            url = f"http://127.0.0.1:{self.plant.hub.port}{path}"
            rows = []
            with (
                contextlib.suppress(HTTPError),
                urllib.request.urlopen(url, timeout=30) as answer,
            ):  # 404: not known yet
                rows = json.load(answer)["ran"]
            found |= {row["device"]: row["version"] for row in rows if row["modality"] == "camera"}
        return found

    def _start_hub(self, words: list[str]) -> None:
        hub = subprocess.Popen([*LINESIDE, *words, "--json"], cwd=self.folder, env=ENV, stdout=subprocess.PIPE)
        self._stack.callback(hub.wait, 60)
        self._stack.callback(hub.terminate)
        assert hub.stdout is not None
        assert "dashboard" in json.loads(hub.stdout.readline())


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    with ExitStack() as stack:
        yield Story(tmp_path, stack)


def place(story: Story, words: list[str]) -> str:
    """The command's key in EXPECTED."""
    name = " ".join(words[: 3 if words[1] == "rollout" else 2])
    story.rollouts += name == "deploy rollout start"
    return f"{name} again" if name == "deploy rollout start" and story.rollouts > 1 else name


@pytest.mark.slow
def test_the_walk_through_in_readme_holds(story: Story) -> None:
    met = []
    for words in commands():
        told = story.tell(words)
        name = place(story, words)
        if name == "deploy publish" and "bundles/camera-1.onnx" in words:
            story.come()
            assert wait(lambda: "edge-1" in story.cameras() and "edge-2" in story.cameras())
        if name in EXPECTED:
            state, cameras = EXPECTED[name]
            assert (told.get("rollout") or {"state": ""})["state"] == state, name
            assert not cameras or wait(lambda cameras=cameras: story.cameras() == cameras), name
            met.append(name)
        elif name == "deploy status":
            assert [(row["running"], row["verified"]) for row in told] == [("2", True), ("1", True)] * 2
    assert met == [*EXPECTED]
    rows = told["ran"]  # the last command: hub ran
    assert [(row["modality"], row["version"], row["verified"]) for row in rows] == [
        ("camera", 1, True),
        ("microphone", 1, True),
    ]
