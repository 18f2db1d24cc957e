"""How a device changes encoders while it runs: edge.changeover with slots, and a signed repository over HTTP."""

from __future__ import annotations

import contextlib
import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper

from deploy import repository
from deploy.repository import Repository
from edge.changeover import Changeover
from edge.commissioning import MOST_MOMENTS
from edge.config import CommissioningSettings, DeviceConfig, DeviceSettings, RepositorySettings, SensorSettings
from edge.pipeline import Pipeline
from edge.replay import simulated, through
from edge.slots import Slots
from edge.updater import Updater
from lineside.clock import SystemClock
from lineside.errors import LinesideError, ReleaseError
from lineside.messages import Score
from lineside.plant import PlantConfig
from tests import line_encoder
from tests.line_device import SENSORS, SITE, START_NS, record

PLANT = PlantConfig(site=SITE, devices=["edge-1"])


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = DeviceSettings(id="edge-1", site=SITE, station="press")
    return record(tmp_path_factory.mktemp("line") / "normal.mcap", DeviceConfig(device=settings, sensors=SENSORS), 60.0)


@dataclass
class Bench:
    """A device with version 1 of both encoders in use, normal running learned, and a repository that it looks at."""

    folder: Path
    repo: Repository
    changeover: Changeover
    slots: Slots

    def publish(self, version: int, golden: bytes = b"") -> None:
        path = line_encoder.write(self.folder, "camera", version)
        if golden:
            model = onnx.load(path)
            told = {prop.key: prop.value for prop in model.metadata_props}
            helper.set_model_props(model, told | {"lineside.golden_outputs": msgspec.json.encode(golden).decode()})
            onnx.save(model, path)
        self.repo.publish([path])

    @property
    def version(self) -> str:
        assert self.changeover.pipeline.ensemble is not None
        return self.changeover.pipeline.ensemble.versions["camera"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, recording: Path) -> Path:
    """What `bench` begins with: a repository, and a device that has its encoders and learned normal running."""
    folder = tmp_path_factory.mktemp("made")
    repo = repository.of(PLANT, folder, SystemClock())
    repo.init(PLANT.modalities)
    shutil.copy(repo.roles.folder / "metadata" / "1.root.json", folder / "root.json")
    repo.publish([line_encoder.write(folder, modality) for modality in PLANT.modalities])
    with served(folder) as url:
        device(folder, recording, url).begin()
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


def device(folder: Path, recording: Path, url: str) -> Changeover:
    config = DeviceConfig(
        device=DeviceSettings(id="edge-1", site=SITE, station="press"),
        sensors=SENSORS,
        commissioning=CommissioningSettings(recording=str(recording)),
        repository=RepositorySettings(url=url),
    )
    slots = Slots(folder / "state", SystemClock())
    updater = Updater(config.repository, folder, folder / "state", slots)
    return Changeover(config, folder, Pipeline(config), slots, updater)


@pytest.fixture
def bench(tmp_path: Path, made: Path, recording: Path) -> Iterator[Bench]:
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    with served(tmp_path) as url:
        changeover = device(tmp_path, recording, url)
        changeover.begin()
        repo = repository.of(PLANT, tmp_path, SystemClock())
        yield Bench(tmp_path, repo, changeover, changeover.slots)


def test_first_encoders_come_from_the_repository_and_an_update_learns_normal_anew(bench: Bench) -> None:
    before = bench.changeover.pipeline.ensemble
    assert before is not None
    assert before.versions == {"camera": "1", "microphone": "1"}
    bench.publish(2)
    assert bench.changeover.update("camera", asked=False) == "2"
    after = bench.changeover.pipeline.ensemble
    assert after is not None
    assert after.versions == {"camera": "2", "microphone": "1"}
    assert after.encoders["microphone"] is before.encoders["microphone"]
    assert before.normal is not None
    assert after.normal is not None
    assert not (after.normal.coresets["cam0"].bank == before.normal.coresets["cam0"].bank).all()
    assert (after.normal.coresets["mic0"].bank == before.normal.coresets["mic0"].bank).all()
    health = bench.changeover.health()["camera"]
    assert (health.version, health.previous) == ("2", "1")


def test_a_version_rolled_back_from_is_taken_again_only_when_asked(bench: Bench) -> None:
    bench.publish(2)
    bench.changeover.update("camera", asked=False)
    assert bench.changeover.rollback("camera") == "1"
    assert bench.changeover.update("camera", asked=False) == "1"
    assert bench.version == "1"
    assert bench.slots.current("camera").version == 1
    assert bench.changeover.update("camera") == "2"
    assert bench.slots.current("camera").version == 2
    assert bench.changeover.update("microphone", asked=False) == "1"


def test_a_version_that_fails_its_self_test_is_declined(bench: Bench) -> None:
    before = bench.changeover.pipeline.ensemble
    bench.publish(2, golden=golden_of_another(bench))
    with pytest.raises(ReleaseError) as error:
        bench.changeover.update("camera", asked=False)
    assert error.value.check == "golden"
    assert bench.changeover.pipeline.ensemble is before
    assert bench.slots.current("camera").version == 1
    assert bench.slots.previous("camera") is None
    assert bench.changeover.update("camera", asked=False) == "1"  # not tried a second time
    with pytest.raises(ReleaseError):
        bench.changeover.update("camera")
    bench.publish(3)
    assert bench.changeover.update("camera", asked=False) == "3"


def golden_of_another(bench: Bench) -> bytes:
    """Embeddings of the right shape that no version of the camera's encoder gives."""
    assert bench.changeover.pipeline.ensemble is not None
    expected = np.frombuffer(bench.changeover.pipeline.ensemble.encoders["camera"].card.golden_outputs, "<f4")
    return np.roll(expected, 7).astype("<f4").tobytes()


def test_normal_running_is_kept_over_a_restart_without_recording_or_server(bench: Bench) -> None:
    bench.publish(2)
    bench.changeover.update("camera")
    config = msgspec.structs.replace(
        bench.changeover.config, commissioning=CommissioningSettings(), repository=RepositorySettings()
    )
    again = Changeover(config, bench.folder, Pipeline(config), bench.slots, None)
    again.begin()
    assert again.pipeline.commissioning is None
    assert again.pipeline.ensemble is not None
    assert again.pipeline.ensemble.versions["camera"] == "2"
    assert again.pipeline.ensemble.normal is not None


def test_a_sensor_that_was_taken_away_does_not_stop_the_others(bench: Bench) -> None:
    config = msgspec.structs.replace(bench.changeover.config, sensors=SENSORS[1:])
    again = Changeover(config, bench.folder, Pipeline(config), bench.slots, None)
    again.begin()
    assert again.pipeline.ensemble is not None
    assert again.pipeline.ensemble.normal is not None
    assert set(again.pipeline.ensemble.normal.coresets) == {"mic0"}


def test_a_sensor_that_was_added_stays_out_of_the_scores_until_it_is_commissioned(bench: Bench) -> None:
    """A plant adds a second microphone: nothing of what worked may fall silent."""
    added = SensorSettings(name="mic1", modality="microphone", source="simulation", seed=5)
    config = msgspec.structs.replace(bench.changeover.config, sensors=[*SENSORS, added])
    again = Changeover(config, bench.folder, Pipeline(config), bench.slots, None)
    again.begin()
    messages = list(through(again.pipeline, simulated(config, bench.folder, START_NS, 4.0)))
    scores = [message for message in messages if isinstance(message, Score)]
    assert len(scores) >= 5
    assert all(set(score.contributions) == {"cam0", "mic0"} for score in scores)
    assert all(score.absent == {"mic1": "not commissioned"} for score in scores)


def test_a_full_or_missing_state_folder_leaves_the_running_encoder(bench: Bench) -> None:
    bench.publish(2)
    before = bench.changeover.pipeline.ensemble
    (bench.folder / "state" / "slots" / "camera" / "b").write_text("in the way")
    with pytest.raises(LinesideError, match="the running encoder stays"):
        bench.changeover.update("camera")
    assert bench.changeover.pipeline.ensemble is before


def test_commissioning_from_live_moments_begins_anew_when_they_do_not_suffice(bench: Bench) -> None:
    config = msgspec.structs.replace(bench.changeover.config, commissioning=CommissioningSettings(minutes=0.1))
    (bench.folder / "state" / "commissioning.npz").unlink()
    pipeline = Pipeline(config)
    again = Changeover(config, bench.folder, pipeline, bench.slots, None)
    again.begin()
    live = pipeline.commissioning
    assert live is not None
    assert bench.changeover.commissioning is not None
    live.moments += bench.changeover.commissioning.moments[:20]
    live.start_ns += bench.changeover.commissioning.start_ns[:20]
    with pytest.raises(LinesideError, match="at least 40 are needed"):
        again.finish_commissioning()
    assert pipeline.commissioning is not None
    assert pipeline.commissioning.moments == []
    pipeline.commissioning.moments += bench.changeover.commissioning.moments
    pipeline.commissioning.start_ns += bench.changeover.commissioning.start_ns
    assert again.finish_commissioning()
    assert pipeline.commissioning is None
    assert pipeline.ensemble is not None
    assert pipeline.ensemble.normal is not None


def test_commissioning_again_may_keep_what_is_known(bench: Bench) -> None:
    config = msgspec.structs.replace(bench.changeover.config, commissioning=CommissioningSettings(minutes=0.1))
    pipeline = Pipeline(config)
    again = Changeover(config, bench.folder, pipeline, bench.slots, None)
    again.begin()
    known = again.commissioning
    assert known is not None
    for keep, expected in ((True, len(known.moments) + 50), (False, 50)):
        again.commission_again(keep=keep)
        live = pipeline.commissioning
        assert live is not None
        for moment, start_ns in zip(known.moments[:50], known.start_ns[:50], strict=True):
            live.add(moment, start_ns + 10**15)
        assert again.finish_commissioning()
        assert again.commissioning is not None
        assert len(again.commissioning.moments) == expected == len(again.commissioning.states)
        assert pipeline.ensemble is not None
        assert pipeline.ensemble.commissioned_ns == live.start_ns[-1]
        kept = again.kept()
        assert kept is not None
        assert len(kept.moments) == expected
    assert again.contract is None  # nothing was rehearsed in these: it is told, and the line is judged all the same


def test_what_is_kept_is_bounded(bench: Bench) -> None:
    known = bench.changeover.commissioning
    assert known is not None
    many = replace(known, moments=known.moments[:1] * 5_000, start_ns=[*range(5_000)], states=[""] * 5_000, faulty=())
    both = replace(known, faulty=()).after(many)
    assert len(both.moments) == len(both.start_ns) == len(both.states) <= MOST_MOMENTS
    assert both.start_ns[-len(known.moments) :] == known.start_ns  # what is new stays whole
    with pytest.raises(LinesideError, match="other sensors"):
        replace(known, modalities={"cam0": "camera"}).after(known)
