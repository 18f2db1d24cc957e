"""A whole agent between simulated sensors and a real broker, ingest and store: edge.agent."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.agent import Agent
from edge.config import CommissioningSettings, DeviceConfig, DeviceSettings, SensorSettings
from hub.ingest import Ingest
from hub.store import Store, database_url
from lineside.clock import SystemClock
from lineside.messages import Alarm, Health, Score
from lineside.operator import Operator, Outcome
from tests.line_broker import LineBroker, wait
from tests.line_device import SENSORS, SITE, install, record

pytestmark = pytest.mark.slow

NO_CAMERA = [SensorSettings(name="cam0", modality="camera", source="camera", device="/dev/video99"), SENSORS[1]]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = DeviceSettings(id="edge-1", site=SITE, station="press")
    return record(tmp_path_factory.mktemp("line") / "normal.mcap", DeviceConfig(device=settings, sensors=SENSORS), 60.0)


class Line:
    """Broker, hub and store of one plant, and its agents by device."""

    def __init__(self, folder: Path, *devices: str) -> None:
        self.folder = folder
        self.broker = LineBroker(folder, *devices)
        self.store = Store(database_url("sqlite:///hub.db", folder))
        hub = self.broker.plant.connection("hub")
        self.ingest = Ingest(SITE, hub, folder, self.store, clock=SystemClock())
        self.ingest.start()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def run(self, name: str, sensors: list[SensorSettings], *, minutes: float = 5.0, **more: object) -> None:
        settings = DeviceSettings(id=name, site=SITE, station=name, state_dir=f"state-{name}", **more)
        install(self.folder / settings.state_dir)
        there = (self.folder / "normal.mcap").exists() and minutes == 5.0
        config = DeviceConfig(
            device=settings,
            sensors=sensors,
            broker=self.broker.plant.connection(name),
            commissioning=CommissioningSettings(recording="normal.mcap" if there else "", minutes=minutes),
        )
        agent = Agent(config, self.folder, SystemClock())
        self._threads.append(threading.Thread(target=agent.run, args=(self._stop,), name=name))
        self._threads[-1].start()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(15)
        self.ingest.stop()
        self.broker.stop()
        self.store.close()

    def health(self, name: str) -> Health:
        assert wait(lambda: name in self.store.latest_health([name]))
        return self.store.latest_health([name])[name]

    def last(self, name: str) -> Score:
        return self.store.scores(name)[-1]

    def alarms(self, name: str) -> list[Alarm]:
        return [alarm for alarm in self.store.alarms() if alarm.device == name]

    def ask(self, name: str, op: str, **args: str) -> Outcome:
        connection = self.broker.plant.connection("operator")
        with Operator(connection, self.folder, SITE, SystemClock()) as operator:
            return operator.ask([name], op, args, 30.0)[0]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, recording: Path) -> Iterator[Line]:
    """edge-1 is well, edge-2 has no camera, edge-3 has none either and is to learn normal from live windows."""
    folder = tmp_path_factory.mktemp("plant")
    shutil.copy(recording, folder / "normal.mcap")
    made = Line(folder, "edge-1", "edge-2", "edge-3")
    made.run("edge-1", SENSORS, allow_fault_injection=True)
    made.run("edge-2", NO_CAMERA)
    made.run("edge-3", NO_CAMERA, minutes=0.05)
    yield made
    made.close()


def test_scores_arrive_and_health_says_watching(line: Line) -> None:
    assert wait(lambda: line.health("edge-1").state == "watching")
    assert wait(lambda: len(line.store.scores("edge-1")) >= 4)
    assert wait(lambda: set(line.last("edge-1").contributions) == {"cam0", "mic0"})
    score, health = line.last("edge-1"), line.health("edge-1")
    assert score.versions == {"camera": "1", "microphone": "1"}
    assert health.problems == []
    assert wait(lambda: line.health("edge-1").drift.startswith("what is ordinary is being learned, 0.0 of 24 h"))
    assert {modality: encoder.version for modality, encoder in health.encoders.items()} == score.versions
    assert wait(lambda: line.store.gaps("edge-1") == {})
    assert line.ingest.presence["edge-1"].word == "online"


def test_a_missing_camera_is_told_and_the_microphone_scores_alone(line: Line) -> None:
    assert wait(lambda: line.store.scores("edge-2"))
    score = line.last("edge-2")
    assert list(score.contributions) == ["mic0"]
    assert score.absent == {"cam0": "absent"}
    assert wait(lambda: line.health("edge-2").sensors["cam0"].problem)
    health = line.health("edge-2")
    problem = health.sensors["cam0"].problem
    assert "/dev/video99" in problem
    assert "lineside edge doctor" in problem
    assert problem in health.problems
    assert health.sensors["mic0"].problem == ""
    assert wait(lambda: line.alarms("edge-2"))
    [alarm] = line.alarms("edge-2")
    assert (alarm.kind, alarm.state, alarm.subject) == ("sensor", "raised", "cam0")


def test_health_says_what_is_left_without_the_camera(line: Line) -> None:
    assert wait(lambda: "mean AUROC" in line.health("edge-2").degraded)  # measured once commissioned
    health = line.health("edge-2")
    assert health.degraded.startswith("without cam0: mean AUROC ")
    assert "no window came; is the sensor plugged in?" in health.degraded
    assert health.sensors["cam0"].flagged["absent"] >= 3
    assert health.sensors["cam0"].restarts >= 1
    assert health.sensors["mic0"].rate_hz == 16_000
    assert line.health("edge-1").degraded == ""


def test_live_commissioning_without_a_camera_says_why_it_does_not_end(line: Line) -> None:
    assert wait(lambda: "normal windows" in "".join(line.health("edge-3").problems[:1]))
    health = line.health("edge-3")
    assert health.state == "commissioning"
    assert "cam0: 0 normal windows, at least 40 are needed" in health.problems[0]
    assert line.ask("edge-3", "dance").status == "failed"  # after each command health is told anew
    assert wait(lambda: line.health("edge-3").seq > health.seq)
    assert line.health("edge-3").problems == health.problems


@pytest.mark.alone
def test_a_muted_microphone_is_a_sensor_alarm_and_scoring_goes_on(line: Line) -> None:
    assert wait(lambda: line.store.scores("edge-1"))
    assert line.ask("edge-1", "fault", kind="muted", seconds="6").status == "successful"
    assert wait(lambda: [a.subject for a in line.alarms("edge-1") if a.kind == "sensor"] == ["mic0"])
    [alarm] = [alarm for alarm in line.alarms("edge-1") if alarm.kind == "sensor"]
    assert (alarm.state, alarm.top_modality) == ("raised", "microphone")
    alone = [s for s in line.store.scores("edge-1") if list(s.contributions) == ["cam0"]]
    assert {s.absent["mic0"] for s in alone} == {"silent"}
    assert wait(lambda: list(line.last("edge-1").contributions) == ["cam0", "mic0"])
    assert wait(lambda: line.store.gaps("edge-1") == {})


@pytest.mark.parametrize(
    ("device", "op", "args", "told"),
    [
        ("edge-2", "fault", {"kind": "muted"}, "known are update and rollback with a modality of the device"),
        ("edge-1", "dance", {}, "known are update and rollback with a modality of the device"),
        ("edge-1", "rollback", {"modality": "series"}, "known are update and rollback with a modality of the device"),
        ("edge-1", "fault", {"kind": "earthquake"}, "known are bearing_noise"),
        ("edge-1", "fault", {"kind": "muted", "seconds": "soon"}, "choose another kind or number of seconds"),
        ("edge-1", "fault", {"kind": "muted", "seconds": "nan"}, "choose another kind or number of seconds"),
        ("edge-1", "update", {"modality": "camera"}, "set [repository] url"),
        ("edge-1", "rollback", {"modality": "camera"}, "there is no previous encoder to go back to"),
    ],
)
def test_a_command_that_cannot_be_done_fails_with_reason_and_mend(
    line: Line, device: str, op: str, args: dict[str, str], told: str
) -> None:
    assert wait(lambda: line.store.scores(device))
    outcome = line.ask(device, op, **args)
    assert outcome.status == "failed"
    assert told in outcome.reason
    assert wait(lambda: line.health(device).encoders)  # the first health of all is from before encoders
    assert line.health(device).encoders["camera"].version == "1"


def test_after_all_that_the_chores_are_still_done(line: Line) -> None:
    """The strangest number of seconds ends the fault, not the thread that executes commands."""
    assert line.ask("edge-1", "fault", kind="muted", seconds="-inf").status == "successful"
    assert line.ask("edge-1", "dance").status == "failed"


def test_recording_everything_is_switched_by_an_operator_and_stays_on_the_device(line: Line) -> None:
    assert not line.health("edge-2").recording
    assert line.ask("edge-2", "record", switch="on").status == "successful"
    assert wait(lambda: line.health("edge-2").recording)
    parts = line.folder / "state-edge-2" / "recordings"
    assert wait(lambda: parts.is_dir() and list(parts.glob(".*.part")))
    assert line.ask("edge-2", "record", switch="off").status == "successful"
    assert wait(lambda: not line.health("edge-2").recording and list(parts.glob("*.mcap")))
    assert line.ask("edge-2", "record", switch="perhaps").status == "failed"


def test_a_state_folder_that_cannot_be_written_is_told_and_commands_are_still_executed(line: Line) -> None:
    install(line.folder / "state-edge-2", "camera")  # a second one, to have somewhere to go back to
    (line.folder / "state-edge-2" / "declined.json").mkdir()
    outcome = line.ask("edge-2", "rollback", modality="camera")
    assert outcome.status == "failed"
    assert "declined.json" in outcome.reason
    assert line.ask("edge-2", "dance").status == "failed"


def test_a_device_commissions_again_on_command_and_judges_on_meanwhile(line: Line) -> None:
    assert line.ask("edge-1", "commission").status == "successful"
    assert wait(lambda: line.health("edge-1").state == "commissioning")
    before = len(line.store.scores("edge-1"))
    assert wait(lambda: len(line.store.scores("edge-1")) > before + 4)
    assert line.health("edge-1").problems == []
