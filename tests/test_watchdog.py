"""What the service manager is told, and when: edge.watchdog, edge.notify, and the agent's own signs of life."""

from __future__ import annotations

import doctest
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import edge.watchdog
from edge.agent import Agent
from edge.config import CommissioningSettings, DeviceConfig, DeviceSettings, OutboxSettings, SensorSettings
from edge.notify import keep_told, send, watchdog_ns
from edge.watchdog import Signs, Watchdog
from lineside.clock import NS, SimulatedClock, SystemClock
from lineside.mqtt import BrokerConfig
from tests.line_broker import wait
from tests.line_device import SENSORS, install

PERIOD_NS = 20 * NS


def told(
    dog: Watchdog, at_s: float, rounds: dict[str, int], *busy: str, status: str = ""
) -> tuple[Watchdog, list[str]]:
    return dog.look(Signs(rounds, frozenset(busy), status), round(at_s * NS))


def test_the_example_of_the_docstring_holds():
    assert doctest.testmod(edge.watchdog).failed == 0


def test_it_is_ready_when_every_stage_went_round_and_only_once():
    dog, lines = told(Watchdog(PERIOD_NS), 0, {"judge": 5, "chores": 0})
    assert lines == []
    dog, lines = told(dog, 1, {"judge": 6, "chores": 1})
    assert lines == ["READY=1"]
    assert told(dog, 2, {"judge": 7, "chores": 2})[1] == []


def test_a_long_start_asks_for_more_time_as_long_as_something_is_being_done():
    dog, lines = told(Watchdog(PERIOD_NS), 80, {"judge": 5, "chores": 0}, "chores")
    assert lines == ["EXTEND_TIMEOUT_USEC=30000000"]
    assert told(dog, 81, {"judge": 5, "chores": 0})[1] == []


def test_it_is_fed_at_half_of_the_period_and_only_when_every_stage_moved_since():
    dog, _ = told(Watchdog(PERIOD_NS), 0, {"judge": 1, "cam0": 1})
    assert told(dog, 9.9, {"judge": 99, "cam0": 99})[1] == []
    dog, lines = told(dog, 10, {"judge": 99, "cam0": 1})
    assert lines == []
    dog, lines = told(dog, 12, {"judge": 99, "cam0": 2})  # late, not too late
    assert lines == ["WATCHDOG=1"]
    assert told(dog, 21.9, {"judge": 200, "cam0": 3})[1] == []
    assert told(dog, 22, {"judge": 200, "cam0": 3})[1] == ["WATCHDOG=1"]


@pytest.mark.parametrize("stage", ["judge", "chores", "capture of cam0", "uplink"])
def test_one_stage_that_stands_still_is_named_and_never_fed(stage: str):
    rounds = dict.fromkeys(["judge", "chores", "capture of cam0", "uplink"], 1)
    dog, _ = told(Watchdog(PERIOD_NS), 0, rounds)
    for second in range(1, 60):
        rounds = {name: count + (name != stage) for name, count in rounds.items()}
        dog, lines = told(dog, second, rounds)
        assert lines == []
        assert dog.late == ((stage,) if second >= 15 else ())


def test_declared_long_work_is_not_a_hang_and_a_stage_at_its_end_is_not_waited_for():
    dog, _ = told(Watchdog(PERIOD_NS), 0, {"judge": 1, "chores": 1, "cam0": 1})
    dog, lines = told(dog, 10, {"judge": 2, "chores": 1, "cam0": 2}, "chores")
    assert lines == ["WATCHDOG=1"]
    assert told(dog, 20, {"judge": 3, "chores": 2})[1] == ["WATCHDOG=1"]


def test_the_status_is_told_when_it_changes_and_on_one_line():
    dog, lines = told(Watchdog(0), 0, {"judge": 1}, status="watching; cam0: gone\nWATCHDOG=1")
    assert lines == ["READY=1", "STATUS=watching; cam0: gone WATCHDOG=1"]
    assert told(dog, 100, {"judge": 1}, status="watching; cam0: gone\nWATCHDOG=1")[1] == []
    assert told(dog, 100, {"judge": 1}, status="watching")[1] == ["STATUS=watching"]


def test_without_a_period_nobody_is_fed_or_late():
    dog, _ = told(Watchdog(0), 0, {"judge": 1})
    dog, lines = told(dog, 1e6, {"judge": 1})
    assert (lines, dog.late) == ([], ())


def test_the_period_is_of_this_process_alone():
    assert watchdog_ns({}) == 0
    assert watchdog_ns({"WATCHDOG_USEC": "5000000"}) == 5 * NS
    assert watchdog_ns({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": str(os.getpid())}) == 5 * NS
    assert watchdog_ns({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"}) == 0


class Manager:
    """A service manager's end of the notification socket; `@` begins an abstract address."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.settimeout(60)

    def hear(self) -> list[str]:
        return self._socket.recv(65536).decode().splitlines()

    def heard(self, line: str, within: int = 60) -> bool:
        return any(line in self.hear() for _ in range(within))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["a path", "an abstract name"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify") if request.param == "a path" else f"@lineside-test-{os.getpid()}")
    yield made
    made.close()


def test_lines_arrive_as_one_datagram(manager: Manager):
    send(manager.address, ["READY=1", "STATUS=watching"])
    assert manager.hear() == ["READY=1", "STATUS=watching"]


def test_readiness_food_and_the_end_are_told(manager: Manager):
    stop, rounds = threading.Event(), iter(range(1, 1000))
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
    keep_told(lambda: Signs({"judge": next(rounds)}, status="watching"), environment, SystemClock(), stop)
    assert manager.hear() == ["READY=1", "STATUS=watching"]
    assert [manager.hear(), manager.hear()] == [["WATCHDOG=1"]] * 2
    stop.set()
    assert manager.heard("STOPPING=1")


def test_a_manager_that_is_gone_stops_nothing_and_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    stop, looked = threading.Event(), threading.Event()
    environment = {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "100000"}

    def signs() -> Signs:
        looked.set()
        return Signs({"judge": 1})

    keep_told(signs, environment, SystemClock(), stop)
    assert looked.wait(60)
    assert wait(lambda: "cannot be told READY=1" in caplog.text)
    stop.set()


def test_a_hang_is_told_in_the_log_with_the_stage(manager: Manager, caplog: pytest.LogCaptureFixture):
    stop = threading.Event()
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "100000"}
    with caplog.at_level(logging.ERROR):
        keep_told(lambda: Signs({"judge": 1, "chores": 1}), environment, SystemClock(), stop)
        assert wait(lambda: "no progress in judge, chores" in caplog.text)
    stop.set()


def device(tmp_path: Path, *sensors: SensorSettings, encoders: bool = True) -> DeviceConfig:
    if encoders:
        install(tmp_path / "state")
    settings = DeviceSettings(id="edge-1", site="line1", station="press")
    broker = BrokerConfig(port=1)  # nobody answers there: a broker that is away is no hang
    return DeviceConfig(device=settings, sensors=list(sensors), broker=broker, outbox=OutboxSettings(max_mb=1))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[list[threading.Thread]]:
    threads: list[threading.Thread] = []
    yield threads
    for thread in threads:
        thread.join(20)


@pytest.mark.slow
def test_every_stage_of_an_agent_goes_round_though_a_camera_broker_and_encoders_are_missing(
    tmp_path: Path, running: list[threading.Thread]
):
    away = SensorSettings(name="cam0", modality="camera", source="camera", device="/dev/video99")
    agent, stop = Agent(device(tmp_path, away, SENSORS[1], encoders=False), tmp_path, SystemClock()), threading.Event()
    assert set(agent.signs().rounds) == {"judge", "chores", "capture of cam0", "capture of mic0", "uplink"}
    assert set(agent.signs().rounds.values()) == {0}
    running.append(threading.Thread(target=agent.run, args=(stop,)))
    running[0].start()
    try:
        assert wait(lambda: all(agent.signs().rounds.values()))
        before = agent.signs().rounds
        quick = {stage: rounds for stage, rounds in before.items() if stage != "chores"}  # they try again every 5 s
        assert wait(lambda: all(agent.signs().rounds[stage] > rounds for stage, rounds in quick.items()))
        assert agent.signs().busy >= {"capture of cam0"}  # away is no hang for as long as the longest back-off
        status = agent.signs().status
        assert status.startswith("waiting for encoders; camera: missing failed: no encoder on this device yet")
        assert "cam0: cannot open /dev/video99" in status
    finally:
        stop.set()


def test_a_sensor_at_the_end_of_its_file_is_no_stage_any_more(tmp_path: Path, running: list[threading.Thread]):
    (tmp_path / "short.csv").write_text("0.0,1.0\n0.1,2.0\n")
    short = SensorSettings(name="vib0", modality="series", source="series", device="short.csv", rate_hz=100, channels=2)
    agent, stop = Agent(device(tmp_path, short, SENSORS[1]), tmp_path, SystemClock()), threading.Event()
    running.append(threading.Thread(target=agent.run, args=(stop,)))
    running[0].start()
    try:
        assert wait(lambda: "capture of vib0" not in agent.signs().rounds)
        assert "capture of mic0" in agent.signs().rounds
    finally:
        stop.set()


def test_learning_from_a_recording_is_declared_and_its_patience_ends(tmp_path: Path, running: list[threading.Thread]):
    os.mkfifo(tmp_path / "normal.mcap")  # who opens it waits
    away = SensorSettings(name="cam0", modality="camera", source="camera", device="/dev/video99")
    config = msgspec.structs.replace(
        device(tmp_path, away), commissioning=CommissioningSettings(recording="normal.mcap")
    )
    clock, stop = SimulatedClock(NS), threading.Event()
    agent = Agent(config, tmp_path, clock)
    running.append(threading.Thread(target=agent.run, args=(stop,)))
    running[0].start()
    try:
        assert wait(lambda: agent.signs().busy == {"chores", "capture of cam0"})
        assert agent.signs().rounds["chores"] == 0
        clock.sleep(1801)
        assert wait(
            lambda: agent.signs().busy == frozenset()
        )  # once its encoder is ready, which has a limit of its own
        (tmp_path / "normal.mcap").write_bytes(b"")
        assert wait(lambda: agent.signs().rounds["chores"] > 0)
        assert "normal.mcap" in agent.signs().status
    finally:
        stop.set()


def test_an_encoder_that_is_made_ready_is_declared_and_told(tmp_path: Path):
    """An engine builds for minutes, and then perhaps another one: each has its own limit."""
    clock = SimulatedClock(NS)
    agent = Agent(device(tmp_path, SENSORS[0]), tmp_path, clock)
    agent._changeover.workshop.doing = "camera-2 is made ready for tensorrt: 40 %"
    clock.sleep(7200)
    assert agent.signs().busy == {"chores"}
    assert agent.signs().status.startswith("starting; camera-2 is made ready for tensorrt: 40 %; ")
    assert agent._health().making == "camera-2 is made ready for tensorrt: 40 %"
    agent._changeover.workshop.doing = ""
    assert agent.signs().busy == frozenset()
    assert "made ready" not in agent.signs().status
    agent._outbox.close()


@pytest.mark.slow
def test_an_agent_under_a_manager_is_ready_is_fed_and_leaves_stacks_when_it_hangs(tmp_path: Path):
    manager = Manager(str(tmp_path / "notify"))
    config = tmp_path / "device.toml"
    config.write_text(
        '[device]\nid = "edge-1"\nsite = "line1"\nstation = "press"\n[broker]\nport = 1\n'
        '[[sensors]]\nname = "mic0"\nmodality = "microphone"\nsource = "simulation"\n'
    )
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1500000", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lineside", "edge", "run", "--config", str(config)]
    agent = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)
    try:
        assert manager.heard("READY=1")
        assert manager.heard("WATCHDOG=1")
        agent.send_signal(signal.SIGABRT)  # what WatchdogSignal sends
        stacks = agent.communicate(timeout=60)[1]
    finally:
        agent.kill()
        manager.close()
    assert agent.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in stacks
    assert all(f"in {name}" in stacks for name in ("_step", "_chores", "_send", "_tell"))
