"""A device on a plant's repository over HTTP, whose changes of encoders a test drives step by step."""

from __future__ import annotations

import contextlib
import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx
from onnx import helper

from deploy import repository
from deploy.repository import Repository
from edge.changeover import Changeover
from edge.config import CommissioningSettings, DeviceConfig, DeviceSettings, RepositorySettings
from edge.pipeline import Pipeline
from edge.rollout import Rollout
from edge.slots import Slots
from edge.updater import Updater
from lineside.clock import Clock, SystemClock
from lineside.errors import LinesideError
from lineside.messages import Command
from lineside.plant import PlantConfig
from lineside.targets import Terms
from tests import line_encoder
from tests.line_broker import wait
from tests.line_device import SENSORS, SITE, record
from tests.line_rollout import AT_ONCE

PLANT = PlantConfig(site=SITE, devices=["edge-1"])


@dataclass
class Bench:
    """A device with version 1 of both encoders in use, normal running learned, and a repository that it looks at."""

    folder: Path
    repo: Repository
    changeover: Changeover
    slots: Slots
    rollout: Rollout
    recording: Path = Path()
    url: str = ""

    def update(self, modality: str = "camera", asked: bool = True) -> str:
        """Look once, for a person or by itself, and go on until there is nothing to do; the version in use.

        Raises LinesideError with the reason when what a person asked for failed.
        """
        if asked:
            self.rollout.ask(Command(id="7f", op="update", args={"modality": modality}))
        self.rollout.look()
        settle(self.rollout)
        for _, reason in self.rollout.ended():
            if reason:
                raise LinesideError(modality, reason, "")
        return self.version_of(modality)

    def publish(self, version: int, golden: bytes = b"") -> None:
        path = line_encoder.write(self.folder, "camera", version)
        if golden:
            model = onnx.load(path)
            told = {prop.key: prop.value for prop in model.metadata_props}
            helper.set_model_props(model, told | {"lineside.golden_outputs": msgspec.json.encode(golden).decode()})
            onnx.save(model, path)
        self.repo.publish([path])
        self.repo.point("camera", version)

    def version_of(self, modality: str) -> str:
        return self.changeover.ensemble.versions[modality]

    @property
    def version(self) -> str:
        return self.version_of("camera")


def settle(rollout: Rollout) -> None:
    """Step until nothing is under way and nothing is asked for."""
    assert wait(lambda: (rollout.step(), rollout.quiet)[1]), rollout.told


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def recorded(folder: Path) -> Path:
    """A minute of normal running."""
    settings = DeviceSettings(id="edge-1", site=SITE, station="press")
    return record(folder / "normal.mcap", DeviceConfig(device=settings, sensors=SENSORS), 60.0)


def make(folder: Path, recording: Path) -> Path:
    """What a test begins with: a repository, and a device that has its encoders and learned normal running."""
    repo = repository.of(PLANT, folder, SystemClock())
    repo.init(PLANT.modalities)
    shutil.copy(repo.roles.folder / "metadata" / "1.root.json", folder / "root.json")
    repo.publish([line_encoder.write(folder, modality) for modality in PLANT.modalities])
    with served(folder) as url:
        device(folder, recording, url).changeover.begin()
    return folder


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the repository in `folder`."""
    published = repository.of(PLANT, folder, SystemClock()).roles.folder
    handler = functools.partial(Quiet, directory=str(published))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Device:
    changeover: Changeover
    rollout: Rollout


def device(
    folder: Path, recording: Path, url: str, terms: Terms = AT_ONCE, clock: Clock | None = None, **settings: object
) -> Device:
    config = DeviceConfig(
        device=DeviceSettings(id="edge-1", site=SITE, station="press"),
        sensors=SENSORS,
        commissioning=CommissioningSettings(recording=str(recording)),
        repository=RepositorySettings(url=url, **settings),
    )
    slots = Slots(folder / "state", SystemClock())
    updater = Updater(config.repository, folder, folder / "state", slots, device="edge-1")
    changeover = Changeover(config, folder, Pipeline(config), slots, updater)
    return Device(changeover, Rollout(changeover, updater, clock or SystemClock(), terms))


def started(folder: Path, recording: Path, url: str, **more: object) -> Bench:
    """A device that starts, as the agent starts it."""
    made = device(folder, recording, url, **more)
    made.rollout.resume()
    made.changeover.begin()
    made.rollout.started()
    repo = repository.of(PLANT, folder, SystemClock())
    return Bench(folder, repo, made.changeover, made.changeover.slots, made.rollout)
