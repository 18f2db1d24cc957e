"""An agent without network and an uplink without state, over a Unix socket: edge.frames, edge.hatch, edge.courier."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge import courier, frames, hatch
from edge.config import DeviceConfig, RepositorySettings
from edge.fetcher import Fetcher
from edge.hatch import Hatch
from edge.metrics import PLAIN
from edge.outbox import Outbox, Waiting
from edge.requests import finished
from edge.shelf import OLDEST
from edge.updater import Updater
from hub.ingest import Ingest
from hub.store import Store, database_url
from lineside import wire
from lineside.clock import SimulatedClock, SystemClock
from lineside.config import load
from lineside.errors import ConfigError, LinesideError, PortInUseError, WireError
from lineside.messages import Command, Piece, StationState
from tests.line_broker import LineBroker, wait
from tests.line_device import SITE, install
from tests.line_port import free_port
from tests.range_server import RangeServer
from tests.test_resume import padded
from tests.test_updater import Bench, Server
from tests.test_uplink import NAME, Listener, moment

HERE = Path(__file__).parent.parent
COMMAND = Command(id="7f", op="update", args={"modality": "camera"})
EXAMPLES: list[tuple[frames.Side, frames.Frame]] = [
    ("uplink", frames.Greeting("outbox", NAME)),
    ("uplink", frames.Places(512, "rest")),
    ("uplink", frames.Pending(-5, 10, "alarms")),
    ("uplink", frames.Forget(7, [(1, 4), (9, 9)])),
    ("uplink", frames.Heard(COMMAND)),
    ("uplink", frames.Told(StationState("product b", 7))),
    ("uplink", frames.Said(COMMAND)),
    ("uplink", frames.Part(b"\0\xff", 7)),
    ("agent", frames.Numbers([-3, 1 << 60])),
    ("agent", frames.Rows([Waiting(3, "score", b"{}")])),
    ("uplink", frames.Next()),
    ("agent", frames.Carried(None)),
    ("agent", frames.Carried(Piece(device=NAME, recording="a", size=9, sha256="", offset=0, data=b"\0"))),
    ("agent", frames.Wake()),
    ("agent", frames.Report(COMMAND)),
    ("agent", frames.Farewell()),
    ("agent", frames.Get("http://hub/metadata/1.root.json", 7)),
    ("agent", frames.Done(4)),
    ("uplink", frames.Failed("no such file", 404)),
]


@pytest.mark.parametrize(("sender", "frame"), EXAMPLES)
def test_a_frame_comes_back_as_it_was_and_from_its_own_side_only(sender: frames.Side, frame: frames.Frame) -> None:
    data = frames.encode(frame)
    assert frames.length(data[:4]) == len(data) - 4
    assert frames.decode(data[4:], sender) == frame
    if not isinstance(frame, (frames.Done, frames.Failed)):
        with pytest.raises(WireError, match="is none of the"):
            frames.decode(data[4:], "agent" if sender == "uplink" else "uplink")


@given(st.binary(max_size=200), st.sampled_from(["agent", "uplink"]))
@example(b"\x91" * 100_000, "agent")
@example(b"\xdd\xff\xff\xff\xff", "uplink")
def test_wild_bytes_are_refused_by_name(data: bytes, sender: frames.Side) -> None:
    with contextlib.suppress(WireError):  # and nothing else
        assert isinstance(frames.decode(data, sender), frames.Frame)


@given(st.sampled_from(EXAMPLES), st.integers(0, 200), st.integers(0, 255))
def test_a_frame_with_one_byte_changed_is_a_frame_or_refused(
    case: tuple[frames.Side, frames.Frame], at: int, byte: int
) -> None:
    data = bytearray(frames.encode(case[1])[4:])
    data[at % len(data)] = byte
    with contextlib.suppress(WireError):
        assert isinstance(frames.decode(bytes(data), case[0]), frames.Frame)


@given(st.integers(0, 2**32 - 1))
def test_a_length_is_believed_only_within_the_bound(size: int) -> None:
    head = size.to_bytes(4, "big")
    if 0 < size <= frames.MAX_FRAME:
        assert frames.length(head) == size
    else:
        with pytest.raises(WireError, match="length of"):
            frames.length(head)


def test_what_is_too_long_is_not_sent_either() -> None:
    with pytest.raises(WireError, match="send at most"):
        frames.encode(frames.Part(bytes(frames.MAX_FRAME), 0))


class Agent:
    """What of the agent stands behind its hatch."""

    def __init__(self, folder: Path, clock: SystemClock | SimulatedClock | None = None) -> None:
        self.commands: list[Command] = []
        self.states: list[StationState] = []
        self.outbox = Outbox(folder / "state" / "outbox.db", NAME, 10**9, SystemClock())
        self.path = folder / "agent.sock"
        clock = clock or SystemClock()
        hears = (self.commands.append, self.states.append)
        self.hatch = Hatch(self.path, NAME, self.outbox, clock, *hears, lambda path, _: (200, PLAIN, path.encode()))
        self.hatch.start()

    def put(self, *numbers: int) -> None:
        for number in numbers:
            self.outbox.put([moment(number)])
            self.hatch.wake()

    def close(self) -> None:
        self.hatch.stop()
        self.outbox.close()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(tmp_path)
    yield made
    made.close()


def raw(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.connect(str(path))
    return made


def test_the_uplink_asks_as_it_would_ask_the_outbox_itself(agent: Agent) -> None:
    agent.put(1, 2, 3)
    known = courier.Courier(agent.path, NAME)
    assert known.places(10, "rest") == [1, 2, 3]
    assert known.places(10, "alarms") == []
    assert known.pending(1, 10, "rest") == agent.outbox.pending(1, 10)
    assert known.forget(agent.outbox.epoch, [(1, 2)]) == 2
    assert agent.outbox.places(10) == [3]
    known.command(COMMAND)
    known.state(StationState("idle"))
    assert (agent.commands, agent.states) == ([COMMAND], [StationState("idle")])
    known.close()


def test_a_farewell_is_heard_by_one_who_asked_in_vain_before(agent: Agent) -> None:
    known = courier.Courier(agent.path, NAME)
    agent.hatch.stop()
    with pytest.raises(ConnectionError, match="the agent cannot be asked"):
        known.places(10, "rest")
    assert isinstance(list(known.news())[-1], frames.Farewell)
    known.close()


def test_a_reply_has_what_fits_into_a_frame_and_one_message_at_least(agent: Agent) -> None:
    agent.outbox.put([msgspec.structs.replace(moment(n), station="s" * 400_000) for n in range(4)])
    known = courier.Courier(agent.path, NAME)
    assert [row.place for row in known.pending(OLDEST, 10, "all")] == [1, 2]
    known.close()


def test_only_user_and_group_may_knock(agent: Agent) -> None:
    assert stat.S_IMODE(agent.path.stat().st_mode) == 0o660


def test_a_socket_left_behind_is_replaced_one_in_use_is_not(tmp_path: Path) -> None:
    first = Agent(tmp_path)
    with pytest.raises(PortInUseError, match="another agent listens"):
        hatch.listen(first.path)
    os.link(first.path, tmp_path / "left")
    first.close()
    assert not first.path.exists()
    os.rename(tmp_path / "left", first.path)
    second = Agent(tmp_path)
    courier.Courier(second.path, NAME).close()
    second.close()


@pytest.mark.parametrize("name", ["x" * 200, "missing/agent.sock"])
def test_a_place_where_no_socket_can_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no socket can be made there"):
        hatch.listen(tmp_path / name)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"\xff\xff\xff\xff", "length of 4294967295 bytes"),
        (b"\0\0\0\0", "length of 0 bytes"),
        (b"GET / HTTP/1.1\r\n\r\n", "length of"),
        (b"\0\0\0\x01\xc1", "is none of the uplink's"),
        (frames.encode(frames.Places(1, "all")), "Places instead"),
        (frames.encode(frames.Greeting("outbox", "edge-2")), "the agent is 'edge-1'"),
        (frames.encode(frames.Greeting("outbox", NAME, 99)), f"speaks protocol {frames.PROTOCOL}, not 'edge-1' and 99"),
        (frames.encode(frames.Greeting("outbox", NAME)) + frames.encode(frames.Part(b"", 0)), "Part asks nothing"),
        (frames.encode(frames.Greeting("outbox", NAME)) + b"\0\0\0\x03abc", "is none of the uplink's"),
    ],
)
def test_nonsense_is_refused_by_name_counted_and_hung_up_on(agent: Agent, sent: bytes, told: str) -> None:
    with raw(agent.path) as knocking:
        knocking.sendall(sent)
        knocking.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            while knocking.recv(4096):
                pass
    assert wait(lambda: agent.hatch.refused == 1)
    assert told in agent.hatch.problem
    known = courier.Courier(agent.path, NAME)  # and the next one is served
    assert known.places(1, "all") == []
    known.close()


def test_an_uplink_of_another_device_is_told_so(agent: Agent) -> None:
    with pytest.raises(LinesideError, match="the agent is 'edge-1'"):
        courier.Courier(agent.path, "edge-9")


@pytest.mark.alone
def test_peers_that_say_nothing_or_read_nothing_hold_nobody_up(agent: Agent) -> None:
    silent = [raw(agent.path) for _ in range(5)]
    deaf = raw(agent.path)
    deaf.sendall(frames.encode(frames.Greeting("news", NAME)))
    deaf.sendall(b"")
    many = Command(id="x", op="update", args={"told": "z" * 200_000})
    before = time.monotonic()
    for number in range(100):
        agent.hatch.report(msgspec.structs.replace(many, id=str(number % 10)))
        agent.put(number)
    assert time.monotonic() - before < 2
    known = courier.Courier(agent.path, NAME)  # takes the place of the deaf one
    assert len(known.places(1000, "all")) == 100
    assert isinstance(next(known.news()), frames.Report)
    known.close()
    for each in (*silent, deaf):
        each.close()


def test_too_many_connections_are_closed_at_once(agent: Agent) -> None:
    knocking = [raw(agent.path) for _ in range(hatch.CONNECTIONS + 4)]
    knocking[-1].settimeout(5)
    assert knocking[-1].recv(1) == b""
    for each in knocking:
        each.close()
    assert wait(lambda: _answers(agent.path))


def _answers(path: Path) -> bool:
    try:
        courier.Courier(path, NAME).close()
    except courier.CUT:
        return False
    return True


def test_a_successor_takes_the_place_of_an_uplink_that_hangs(agent: Agent) -> None:
    hanging = courier.Courier(agent.path, NAME)
    known = courier.Courier(agent.path, NAME)
    assert known.places(1, "all") == []
    with pytest.raises(OSError, match="the agent cannot be asked"):
        hanging.places(1, "all")
    known.close()


def test_a_request_is_done_once_and_its_report_told_until_a_broker_has_it(agent: Agent) -> None:
    first = courier.Courier(agent.path, NAME)
    first.command(COMMAND)
    done = finished(COMMAND, "no such modality")
    agent.hatch.report(done)
    told = first.news()
    assert next(t for t in told if isinstance(t, frames.Report)).command == done
    first.close()  # killed before the broker had it
    second = courier.Courier(agent.path, NAME)
    assert next(second.news()) == frames.Report(done)
    second.command(COMMAND)  # its retained request is still there
    assert agent.commands == [COMMAND]
    second.said(done)
    second.close()
    third = courier.Courier(agent.path, NAME)
    assert next(third.news()) == frames.Wake()
    third.close()


def test_health_tells_of_an_uplink_that_is_not_there_or_does_nothing(tmp_path: Path) -> None:
    clock = SimulatedClock(10**18)
    agent = Agent(tmp_path, clock)
    assert agent.hatch.problem == ""  # it may start after us
    clock.sleep(11)
    assert "is not running" in agent.hatch.problem
    assert "start lineside-uplink" in agent.hatch.problem
    known = courier.Courier(agent.path, NAME)
    assert wait(lambda: "has it a broker?" in agent.hatch.problem)
    known.places(1, "all")
    assert agent.hatch.problem == ""
    known.close()
    agent.close()


def test_the_agents_farewell_is_heard(agent: Agent) -> None:
    known = courier.Courier(agent.path, NAME)
    told: list[frames.Frame] = []
    listening = threading.Thread(target=lambda: told.extend(known.news()))
    listening.start()
    assert wait(lambda: told)
    agent.hatch.stop()
    listening.join(5)
    assert told[-1] == frames.Farewell()
    known.close()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/other/1.json",
        "http://127.0.0.1.evil/repo/1.json",
        "http://127.0.0.1@evil/repo/1.json",
        "https://127.0.0.1/repo/1.json",
        "file:///etc/passwd",
        "http://127.0.0.1/repo/../etc/passwd",
        "http://127.0.0.1/repo/%2e%2e/passwd",
        "http://127.0.0.1/repo/%252e%252e/passwd",
        "http://127.0.0.1/repo/..\\passwd",
        "http://127.0.0.1/repo/a?next=http://evil",
        "http://127.0.0.1/repository/a",
        "http://[broken/repo/a",
    ],
)
def test_only_urls_below_the_repository_are_fetched(url: str) -> None:
    assert courier.below("http://127.0.0.1/repo/metadata/1.root.json", "http://127.0.0.1/repo/")
    assert not courier.below(url, "http://127.0.0.1/repo")


def device_file(folder: Path, line: LineBroker | None = None, url: str = "", sensors: str = "") -> Path:
    broker = line.plant.connection(NAME) if line else None
    text = f'[device]\nid = "{NAME}"\nsite = "{SITE}"\nstation = "press"\n'
    text += sensors or '[[sensors]]\nname = "cam0"\nmodality = "camera"\nsource = "simulation"\n'
    if broker is not None:
        password = folder / broker.password_file
        text += f'[broker]\nport = {broker.port}\nusername = "{broker.username}"\npassword_file = "{password}"\n'
    text += f'[repository]\nurl = "{url}"\n[outbox]\nresend_s = 1.0\n'
    (folder / "device.toml").write_text(text)
    return folder / "device.toml"


class Uplink:
    """`lineside edge uplink` as its own process."""

    def __init__(self, config: Path, path: Path) -> None:
        command = [sys.executable, "-m", "lineside", "edge", "uplink", "-c", str(config), "--socket", str(path)]
        self.process = subprocess.Popen(command, cwd=HERE, stderr=subprocess.PIPE, text=True)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def end(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        told = self.process.communicate(timeout=60)[1]
        return self.process.returncode, told


class Fetching:
    """A repository with two encoders, and a device that can reach it only through its uplink process."""

    def __init__(self, folder: Path) -> None:
        self.bench = Bench(folder)
        for version in (1, 2):
            self.bench.publish("camera", version)
        self.agent = Agent(folder)
        self.uplink = Uplink(device_file(folder, url=self.bench.server.url), self.agent.path)
        settings = RepositorySettings(url=self.bench.server.url)
        fetcher = Fetcher(self.agent.hatch, folder / "partial", SystemClock())
        self.bench.updater = Updater(settings, folder, folder / "state", self.bench.slots, fetcher)
        assert wait(lambda: "fetch" in self.agent.hatch.here)

    def close(self) -> None:
        self.uplink.kill()
        self.agent.close()
        self.bench.server.close()


@pytest.fixture
def fetching(tmp_path: Path) -> Iterator[Fetching]:
    made = Fetching(tmp_path)
    yield made
    made.close()


@pytest.mark.slow
def test_an_update_comes_through_the_socket_and_is_verified_by_the_agent(fetching: Fetching) -> None:
    bench = fetching.bench
    assert bench.update() == 2
    served = len(bench.server.asked)
    assert served >= 4
    bench.publish("camera", 3)
    path = bench.file("camera-3.onnx")
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert "hash failed" in bench.refuses("hash")
    data[100] ^= 1
    path.write_bytes(data)
    assert bench.update() == 3  # a refusal in the middle of a file does not spoil the next
    bench.publish("camera", 4)
    bench.file("camera-4.onnx").unlink()
    bench.refuses("missing")


@pytest.mark.slow
def test_an_endless_file_and_a_url_elsewhere_are_refused_and_the_next_comes(fetching: Fetching) -> None:
    def endless(handler: object) -> None:
        handler.send_response(200)  # type: ignore[attr-defined]
        handler.end_headers()  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(bytes(65_536))  # type: ignore[attr-defined]

    def moved(handler: object) -> None:
        handler.send_response(302)  # type: ignore[attr-defined]
        handler.send_header("Location", "http://127.0.0.1:1/elsewhere")  # type: ignore[attr-defined]
        handler.end_headers()  # type: ignore[attr-defined]

    bench = fetching.bench
    bench.server.instead["timestamp.json"] = endless
    bench.refuses("length")
    bench.server.instead["timestamp.json"] = moved
    assert wait(lambda: "fetch" in fetching.agent.hatch.here)
    assert "302" in bench.refuses("unreachable")
    bench.server.instead.clear()
    elsewhere = Server(bench.folder)
    bench.updater = Updater(
        RepositorySettings(url=elsewhere.url),
        bench.folder,
        bench.folder / "elsewhere",
        bench.slots,
        Fetcher(fetching.agent.hatch, bench.folder / "partial", SystemClock()),
    )
    assert "is not below [repository] url" in bench.refuses("unreachable")
    assert elsewhere.asked == []
    elsewhere.close()
    fetching.uplink.kill()
    told = bench.refuses("unreachable")
    assert "the uplink" in told
    assert wait(lambda: "start lineside-uplink" in bench.refuses("unreachable"))


@pytest.mark.slow
def test_a_download_that_was_cut_goes_on_through_the_socket(tmp_path: Path) -> None:
    bench, agent = Bench(tmp_path), Agent(tmp_path)
    bench.repo.publish([padded(tmp_path, 1)])
    server = RangeServer(bench.repo.roles.folder)
    uplink = Uplink(device_file(tmp_path, url=server.url), agent.path)
    fetcher = Fetcher(agent.hatch, tmp_path / "partial", SystemClock())
    bench.updater = Updater(RepositorySettings(url=server.url), tmp_path, tmp_path / "state", bench.slots, fetcher)
    assert wait(lambda: "fetch" in agent.hatch.here)
    server.manners.cut_after = 50_000
    bench.refuses("unreachable")
    server.manners.cut_after = 100_000
    assert bench.update() == 1
    uplink.kill()
    agent.close()
    server.close()
    bench.server.close()
    assert [asked for asked in server.ranges if asked][:2] == ["bytes=50000-", "bytes=150000-"]


def test_without_an_uplink_an_update_is_refused_with_the_mend(tmp_path: Path, agent: Agent) -> None:
    (tmp_path / "root.json").write_bytes(b"{}")
    with pytest.raises(Exception, match="start lineside-uplink"):
        list(agent.hatch.parts("http://hub/metadata/timestamp.json"))


class Plant:
    """A real broker, and ingest and store of a hub."""

    def __init__(self, folder: Path) -> None:
        self.line = LineBroker(folder, NAME)
        self.store = Store(database_url("sqlite:///hub.db", folder))
        self.ingest = Ingest(SITE, self.line.plant.connection("hub"), folder, self.store, clock=SystemClock())
        self.ingest.start()

    def stored(self) -> int:
        return self.store.counts()["embeddings"]

    def close(self) -> None:
        self.ingest.stop()
        self.line.stop()
        self.store.close()


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    made = Plant(tmp_path)
    yield made
    made.close()


@pytest.mark.slow
def test_an_uplink_killed_at_any_time_loses_nothing_and_duplicates_nothing(
    plant: Plant, agent: Agent, tmp_path: Path
) -> None:
    config = device_file(tmp_path, plant.line)
    for life in range(6):
        uplink, before = Uplink(config, agent.path), plant.stored()
        agent.put(life * 60 + 1)
        assert wait(lambda least=before: plant.stored() > least)
        for number in range(2, 61):
            agent.put(life * 60 + number)
            time.sleep(0.002 * life)
        if life == 3:
            os.kill(plant.line.process.pid or 0, signal.SIGKILL)  # what it had acknowledged is gone with it
        uplink.kill()
    uplink = Uplink(config, agent.path)
    assert wait(lambda: agent.outbox.messages == 0)
    assert plant.stored() == 360
    assert plant.store.gaps(NAME) == {}
    code, told = uplink.end()
    assert code == 0, told
    assert wait(lambda: plant.ingest.presence[NAME].word == "stopped")


@pytest.mark.slow
def test_commands_and_states_go_through_and_each_request_is_done_once(
    plant: Plant, agent: Agent, tmp_path: Path
) -> None:
    config = device_file(tmp_path, plant.line)
    operator = Listener(plant.line, "operator", "cmd")
    operator.say("cmd", wire.encode(COMMAND), "update", "7f", retain=True)
    operator.say("state", wire.encode(StationState("product b", 7)), retain=True)
    uplink = Uplink(config, agent.path)
    assert wait(lambda: agent.commands == [COMMAND] and agent.states[:1] == [StationState("product b", 7)])
    uplink.kill()  # the request is still retained
    agent.hatch.report(msgspec.structs.replace(COMMAND, status="executing"))
    agent.hatch.report(finished(COMMAND))
    uplink = Uplink(config, agent.path)
    assert wait(lambda: operator.commands[-1].status == "successful")
    time.sleep(0.5)
    assert agent.commands == [COMMAND]
    assert uplink.end()[0] == 0
    operator.close()


@pytest.mark.slow
def test_an_agent_that_dies_is_said_to_be_offline_and_found_again(plant: Plant, agent: Agent, tmp_path: Path) -> None:
    uplink = Uplink(device_file(tmp_path, plant.line), agent.path)

    def word() -> str:
        return plant.ingest.presence[NAME].word if NAME in plant.ingest.presence else ""

    assert wait(lambda: word() == "online")
    agent.hatch.stop()
    assert wait(lambda: word() == "stopped")
    again = Agent(tmp_path / "again")
    os.rename(again.path, agent.path)
    again.put(1)
    assert wait(lambda: word() == "online" and again.outbox.messages == 0)
    assert uplink.end()[0] == 0
    again.close()


@pytest.mark.slow
def test_an_uplink_for_another_device_ends_by_name(agent: Agent, tmp_path: Path) -> None:
    config = device_file(tmp_path)
    config.write_text(config.read_text().replace(f'id = "{NAME}"', 'id = "edge-9"'))
    uplink = Uplink(config, agent.path)
    told = uplink.process.communicate(timeout=60)[1]
    assert uplink.process.returncode == 1
    assert "the agent is 'edge-1'" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_the_whole_agent_needs_no_network(plant: Plant, tmp_path: Path) -> None:
    """`lineside edge run --socket` in a namespace without any network interface, `lineside edge uplink` outside."""
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here: a process cannot be kept from the network")
    config = device_file(tmp_path, plant.line)
    device = load(config, DeviceConfig)
    install(tmp_path / device.device.state_dir, "camera")
    path = tmp_path / "agent.sock"
    command = [sys.executable, "-m", "lineside", "edge", "run", "-c", str(config), "--socket", str(path)]
    agent = subprocess.Popen(["unshare", "-rn", *command], cwd=HERE, stderr=subprocess.PIPE, text=True)
    uplink = Uplink(config, path)
    assert wait(lambda: plant.stored() >= 3)
    assert wait(lambda: NAME in plant.store.latest_health([NAME]))
    assert wait(lambda: plant.store.latest_health([NAME])[NAME].problems == [])
    agent.send_signal(signal.SIGTERM)
    told = agent.communicate(timeout=30)[1]
    assert agent.returncode == 0, told
    assert wait(lambda: plant.ingest.presence[NAME].word == "stopped")
    assert plant.store.gaps(NAME) == {}
    assert uplink.end()[0] == 0


@pytest.mark.slow
def test_metrics_are_served_where_the_network_is(plant: Plant, agent: Agent, tmp_path: Path) -> None:
    """The agent's own loopback is one of a service without a network: nobody could reach it there."""
    port = free_port()
    config = device_file(tmp_path, plant.line)
    config.write_text(f"{config.read_text()}\n[metrics]\nport = {port}\n")
    uplink = Uplink(config, agent.path)

    def page(path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    assert wait(lambda: page("/readyz") == (200, b"/readyz"))
    agent.hatch.stop()
    assert wait(lambda: page("/metrics") == (503, b"no agent is connected\n"))
    assert uplink.end()[0] == 0
