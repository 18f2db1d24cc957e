"""A whole agent takes a candidate on an operator's command: broker, signed repository, manifests at the hub."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge.agent import Agent
from edge.config import DeviceConfig, DeviceSettings, RepositorySettings
from edge.doctor import Finding, _changes
from hub.ingest import Ingest
from hub.store import Store, database_url
from hub.tables import MANIFESTS
from lineside.clock import SystemClock
from lineside.manifest import said
from lineside.messages import Installed, Manifest
from lineside.operator import Operator, Outcome
from lineside.targets import Terms
from tests import line_encoder
from tests.line_broker import LineBroker, wait
from tests.line_changeover import PLANT, make, recorded, repository, served
from tests.line_device import SENSORS, SITE
from tests.line_rollout import abort, offer

pytestmark = pytest.mark.slow

WATCHED = Terms(shadow_s=4.0, probation_s=4.0, patience_s=120.0, anomalies=0.5, agreement=1.0, contribution=1.0)


class Line:
    """A plant with one device that watches a simulated line."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.repo = folder, repository.of(PLANT, folder, SystemClock())
        self.broker = LineBroker(folder, "edge-1")
        self.store = Store(database_url("sqlite:///hub.db", folder))
        self.ingest = Ingest(SITE, self.broker.plant.connection("hub"), folder, self.store, clock=SystemClock())
        self.ingest.start()
        config = DeviceConfig(
            device=DeviceSettings(id="edge-1", site=SITE, station="press"),
            sensors=SENSORS,
            broker=self.broker.plant.connection("edge-1"),
            repository=RepositorySettings(url=url),
        )
        self.agent, self._stop = Agent(config, folder, SystemClock()), threading.Event()
        self._thread = threading.Thread(target=self.agent.run, args=(self._stop,))
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(15)
        self.ingest.stop()
        self.broker.stop()
        self.store.close()

    def manifests(self) -> list[Manifest]:
        """Those that the hub has stored, in order."""
        query = sa.select(MANIFESTS.c.body).order_by(MANIFESTS.c.seq)
        with sa.create_engine(database_url("sqlite:///hub.db", self.folder)).connect() as connection:
            return [msgspec.json.decode(body, type=Manifest) for (body,) in connection.execute(query)]

    def camera(self) -> Installed | None:
        told = self.manifests()
        return told[-1].encoders["camera"] if told else None

    def ask(self, op: str, **args: str) -> Outcome:
        with Operator(self.broker.plant.connection("operator"), self.folder, SITE, SystemClock()) as operator:
            return operator.ask(["edge-1"], op, args, 120.0)[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return make(folder, recorded(folder))


@pytest.fixture
def line(tmp_path: Path, made: Path) -> Iterator[Line]:
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    with served(tmp_path) as url:
        found = Line(tmp_path, url)
        yield found
        found.close()


def test_a_candidate_is_taken_live_and_every_phase_is_told_and_signed(line: Line) -> None:
    assert wait(lambda: line.camera() is not None)
    first = line.manifests()[0]
    assert {modality: one.version for modality, one in first.encoders.items()} == {"camera": 1, "microphone": 1}
    offer(line.repo, {"camera": line_encoder.write(line.folder, "camera", 2)}, "7f", WATCHED)
    assert line.ask("update", modality="camera").status == "successful"
    assert wait(lambda: line.camera().phase == "steady" and line.camera().version == 2)
    told = line.manifests()
    phases = list(dict.fromkeys(one.encoders["camera"].phase for one in told if one.encoders["camera"].rollout))
    assert phases[-3:] == ["shadow", "probation", "steady"]  # those before may pass within one look at them
    assert {one.encoders["microphone"] for one in map(_frozen, told)} == {_frozen(first).encoders["microphone"]}
    for one in told:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(one.key))
        key.verify(bytes.fromhex(one.signature), said(one))
    assert {one.key for one in told} == {first.key}
    assert line.camera().measured.keys() == {"anomalies", "agreement", "contribution"}
    assert line.ask("rollback", modality="camera").status == "successful"
    assert wait(lambda: (line.camera().version, line.camera().previous_version) == (1, 2))


def _frozen(manifest: Manifest) -> Manifest:
    """With encoders that can be put into a set."""
    return msgspec.structs.replace(manifest, encoders={m: str(one) for m, one in manifest.encoders.items()})


def test_a_change_in_progress_shows_in_status_and_doctor_and_its_failure_stays_told(line: Line) -> None:
    assert wait(lambda: line.camera() is not None)
    terms = msgspec.structs.replace(WATCHED, shadow_s=600.0, patience_s=3600.0)
    offer(line.repo, {"camera": line_encoder.write(line.folder, "camera", 2)}, "7f", terms)
    outcomes: list[Outcome] = []
    asking = threading.Thread(target=lambda: outcomes.append(line.ask("update", modality="camera")))
    asking.start()
    assert wait(lambda: line.camera().phase == "shadow")
    assert "camera-2 in shadow for" in line.agent.signs().status
    state, clock = line.folder / "state", SystemClock()
    [finding] = _changes(state, clock)
    assert finding.line.startswith("ok   change: camera-2 in shadow for ")
    assert line.ask("cancel", modality="camera").status == "successful"
    asking.join(30)
    assert [(one.status, one.reason) for one in outcomes] == [("failed", "cancelled by a person")]
    failed: list[Finding] = list(_changes(state, clock))
    assert [one.line for one in failed] == [
        "note change camera: camera-2 was not taken: cancelled by a person; "
        "roll it out anew once that is mended, or abort the rollout"
    ]
    assert wait(
        lambda: any("cancelled by a person" in each for each in line.store.latest_health(["edge-1"])["edge-1"].problems)
    )
    abort(line.repo, "camera")
    assert line.ask("update", modality="camera").status == "successful"
    assert wait(lambda: line.store.latest_health(["edge-1"])["edge-1"].problems == [])
