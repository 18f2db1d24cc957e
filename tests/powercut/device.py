"""A device's encoders: an update over HTTP, and the way back to the other slot."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, Snapshot, Targets, Timestamp

from deploy import repository
from edge import change
from edge.changeover import Changeover
from edge.config import CommissioningSettings, DeviceConfig, DeviceSettings, RepositorySettings
from edge.encoder import Encoder
from edge.errand import Errand
from edge.fetcher import Fetcher
from edge.manifest import Identity
from edge.pipeline import Pipeline
from edge.rollout import Rollout
from edge.slots import Slots
from edge.updater import Updater
from edge.web import PART_BYTES, Web
from edge.workshop import Workshop
from lineside.clock import SystemClock
from lineside.plant import PlantConfig
from tests import tiny_encoder
from tests.line_device import SENSORS, SITE, record
from tests.line_rollout import AT_ONCE, finish, offer
from tests.powercut.child import done_in_child, served
from tests.powercut.table import NEW, OLD, Row, Scene

PLANT = PlantConfig(site=SITE, devices=["edge-1"])
DEVICE = DeviceSettings(id="edge-1", site=SITE, station="press")
STEPS = 500
NORMAL_S = 22.0  # the least that normal running can be learned from
MOST_STARTS = 1 << 30


class AtOnce(Errand[Any]):
    """An errand that is done by whoever sends it: the calls of a trace must come in one order."""

    done = True

    def __init__(self, name: str, work: Callable[[], Any]) -> None:
        self.name, self._work = name, work

    def result(self) -> Any:
        return self._work()


class Even:
    """Files over HTTP in parts of one size: as the network cuts them, no two runs would write the same."""

    def __init__(self) -> None:
        self._web = Web()

    def parts(self, url: str, offset: int = 0) -> Generator[tuple[int, bytes], None, None]:
        held, at = b"", offset
        for place, data in self._web.parts(url, offset):
            at = at if held else place
            held += data
            while len(held) >= PART_BYTES:
                yield at, held[:PART_BYTES]
                held, at = held[PART_BYTES:], at + PART_BYTES
        if held:
            yield at, held


class Here(Workshop):
    """Encoders are opened by whoever asks, for the same reason; that a file was tried is no state that counts."""

    def ready(self, path: Path, look: bool = False) -> Encoder:
        return Encoder.load(path)


class Device:
    """The agent's own parts on a device folder, as it starts them; in a process of its own, as every restart is."""

    def __init__(self, folder: Path, url: str, recording: str = "") -> None:
        # A device gives up what it was started too often in. Here every kill is a start, and something else is asked.
        change.MOST_STARTS = MOST_STARTS
        config = DeviceConfig(
            device=DEVICE,
            sensors=SENSORS,
            commissioning=CommissioningSettings(recording=recording),
            repository=RepositorySettings(url=url),
        )
        clock, state = SystemClock(), folder / "state"
        self.slots = Slots(state, clock)
        fetcher = Fetcher(Even(), state / "repository" / "partial", clock)
        updater = Updater(config.repository, folder, state, self.slots, fetcher, DEVICE.id) if url else None
        self.changeover = Changeover(config, folder, Pipeline(config), self.slots, updater)
        self.changeover.workshop = Here("auto", state / "runtimes", clock)
        self.rollout = Rollout(self.changeover, updater, clock, AT_ONCE, AtOnce)
        self.rollout.resume()
        self.changeover.begin()
        self.rollout.started()
        Identity.of(state).manifest(DEVICE, self.rollout.installed, clock.now_ns())

    def settle(self) -> None:
        """Go on until there is nothing to do."""
        for _ in range(STEPS):
            self.rollout.step()
            if self.rollout.quiet:
                return
        raise AssertionError(self.rollout.told)

    @property
    def versions(self) -> dict[str, int]:
        """In use, by modality: what judges is what the slots say."""
        slots = {modality: self.slots.current(modality) for modality in self.changeover.modalities}
        found = {modality: slot.version for modality, slot in slots.items() if slot is not None}
        assert {modality: str(version) for modality, version in found.items()} == self.changeover.ensemble.versions
        return found


@contextlib.contextmanager
def plant(folder: Path, versions: int) -> Iterator[list[str]]:
    """Repositories of one plant with ever more versions of the camera's encoder, each served; the addresses."""
    repo = repository.of(PLANT, folder, SystemClock())
    repo.init(PLANT.modalities)
    repo.publish([tiny_encoder.write(folder, modality) for modality in PLANT.modalities])
    with contextlib.ExitStack() as servers:
        urls = []
        for version in range(1, versions + 1):
            if version > 1:
                repo.publish([tiny_encoder.write(folder, "camera", version)])
                repo.point("camera", version)
            copy = folder / f"served-{version}"
            shutil.copytree(repo.roles.folder, copy)
            urls.append(servers.enter_context(served(copy)))
        yield urls


def shipped(folder: Path) -> tuple[Path, str]:
    """A new device folder with the root of the plant, and a recording of normal running."""
    base = folder / "device"
    base.mkdir()
    shutil.copy(folder / "served-1" / "metadata" / "1.root.json", base / "root.json")
    recording = record(folder / "normal.mcap", DeviceConfig(device=DEVICE, sensors=SENSORS), NORMAL_S)
    return base, str(recording)


def ran(urls: list[str], upto: int, folder: Path) -> None:
    """A device that was commissioned, and updated up to a version."""
    base, recording = shipped(folder)
    start(recording, urls[0], base)
    for version in range(2, upto + 1):
        update(urls[version - 1], versions(version), base)


def update(url: str, wanted: dict[str, int], folder: Path) -> None:
    """Start, and take what the repository names."""
    running = Device(folder, url)
    running.settle()
    assert running.versions == wanted, running.rollout.problems


def back(folder: Path) -> None:
    """Start, and go back to the encoder of the other slot."""
    running = Device(folder, "")
    running.rollout.rollback("camera")
    running.settle()


def judge(before: dict[str, int], after: dict[str, int], seen: int, folder: Path, _: list[str]) -> str:
    """What a restart without any network has in use: it must be able to judge the line.

    It must also remember the repository, at version `seen` of its timestamp or later: else an older state that
    somebody sends would go unnoticed.
    """
    assert remembered(folder) >= seen, "an older state of the repository would be taken"
    running = Device(folder, "")
    assert running.changeover.ensemble.normal is not None, "normal running is gone"
    found = running.versions
    return OLD if found == before else NEW if found == after else f"a mixture, {found}"


def remembered(folder: Path) -> int:
    """The version of the repository's state that the device has seen; all that leads to it is readable."""
    known = folder / "state" / "repository"
    snapshot: Metadata[Snapshot] = Metadata.from_file(str(known / "snapshot.json"))
    for name in ("targets", "camera"):
        read: Metadata[Targets] = Metadata.from_file(str(known / f"{name}.json"))
        assert read.signed.version <= snapshot.signed.meta[f"{name}.json"].version
    timestamp: Metadata[Timestamp] = Metadata.from_file(str(known / "timestamp.json"))
    return timestamp.signed.version


@contextlib.contextmanager
def updating(folder: Path) -> Iterator[Scene]:
    """Version 1 runs, version 2 is published; version 3 follows."""
    with plant(folder, 3) as urls:
        done_in_child(partial(ran, urls, 1, folder))
        base = folder / "device"
        judged = partial(judge, versions(1), versions(2), remembered(base))
        yield Scene(base, partial(update, urls[1], versions(2)), judged, partial(update, urls[2], versions(3)))


@contextlib.contextmanager
def rolling(folder: Path) -> Iterator[Scene]:
    """Version 1 of both runs; a rollout changes both together, and ends in a release of the camera's version 3."""
    with plant(folder, 3) as urls, contextlib.ExitStack() as servers:
        done_in_child(partial(ran, urls, 1, folder))
        repo = repository.of(PLANT, folder, SystemClock())
        new = {modality: tiny_encoder.write(folder, modality, 9) for modality in PLANT.modalities}
        for state in (partial(offer, repo, new, "7f"), partial(finish, repo, *PLANT.modalities)):
            state()
            copy = folder / f"rollout-{len(urls)}"
            shutil.copytree(repo.roles.folder, copy)
            urls.append(servers.enter_context(served(copy)))
        base, nine = folder / "device", dict.fromkeys(PLANT.modalities, 9)
        judged = partial(judge, versions(1), nine, remembered(base))
        yield Scene(base, partial(update, urls[3], nine), judged, partial(update, urls[4], nine))


@contextlib.contextmanager
def going_back(folder: Path) -> Iterator[Scene]:
    """Version 2 runs, version 1 is in the other slot; version 3 follows."""
    with plant(folder, 3) as urls:
        done_in_child(partial(ran, urls, 2, folder))
        base = folder / "device"
        yield Scene(base, back, partial(judge_back, remembered(base)), partial(update, urls[2], versions(3)))


def versions(camera: int) -> dict[str, int]:
    return {"camera": camera, "microphone": 1}


def judge_back(seen: int, folder: Path, said: list[str]) -> str:
    """As `judge`; once the device went back, it does not take the version that it left by itself again."""
    verdict = judge(versions(2), versions(1), seen, folder, said)
    left = Slots(folder / "state", SystemClock()).previous("camera")
    assert left is not None
    declined = folder / "state" / "declined.json"
    if verdict == NEW:
        assert left.sha256 in declined.read_text(), "the next update takes the version that was left again"
    return verdict


def start(recording: str, url: str, folder: Path) -> None:
    """Start with nothing on the disk: fetch what the repository names, and learn normal running from a recording.

    Then look as an agent does, whether there is something new: what a cut left of a download goes with it.
    """
    Device(folder, url, recording).settle()


def judge_start(folder: Path, said: list[str]) -> str:
    """The device runs, or knows that it still has to fetch; nothing that it has is damaged."""
    slots = Slots(folder / "state", SystemClock())
    whole = all(slots.current(modality) for modality in PLANT.modalities)
    return (
        judge({}, versions(1), 1, folder, said) if whole and (folder / "state" / "commissioning.npz").exists() else OLD
    )


@contextlib.contextmanager
def starting(folder: Path) -> Iterator[Scene]:
    """A new device, with the root that it was shipped with."""
    with plant(folder, 1) as urls:
        base, recording = shipped(folder)
        started = partial(start, recording, urls[0])
        yield Scene(base, started, judge_start, started)


HOLDS = "the old or the new encoder judges; an older repository would be noticed; the next update succeeds"
ROWS = (
    Row("update of one modality", HOLDS, updating),
    Row("rollout of two modalities", HOLDS, rolling),
    Row("rollback of one modality", HOLDS, going_back),
    Row("first start of a device", "it runs, or fetches again; the next start succeeds", starting),
)
