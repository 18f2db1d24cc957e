"""A recording of an alarm from a device's disk to the hub's: edge.delivery, hub.evidence."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from mcap.writer import CompressionType, Writer

from edge.agent import Agent
from edge.config import CommissioningSettings, DeviceConfig, DeviceSettings, EvidenceSettings
from edge.delivery import Delivery
from hub.evidence import fetch, safe
from hub.evidence.partial import Partial
from hub.evidence.room import Evidence
from lineside import mqtt, topics, wire
from lineside.clock import NS, SimulatedClock, SystemClock
from lineside.config import load
from lineside.errors import LinesideError, WireError
from lineside.evidence import PIECE_BYTES, REQUEST_BYTES
from lineside.messages import Piece
from lineside.plant import HubSettings, KeepDays
from lineside.recording import Recording
from tests.evidence_scene import NAME, START_NS, alarm, recording
from tests.line_broker import LineBroker, wait
from tests.line_device import SENSORS, SITE, install
from tests.test_split import Uplink, device_file

HUB = HubSettings(evidence=True)


def config(**evidence: object) -> DeviceConfig:
    settings = EvidenceSettings(**{"send": "request", "keep_free_mb": 0.0, **evidence})  # type: ignore[arg-type]
    device = DeviceSettings(id="edge-1", site=SITE, station="press")
    return DeviceConfig(device=device, sensors=SENSORS, evidence=settings)


class Direct:
    """A source without a broker: the device's own Delivery, with what goes wrong on the way in `spoil`."""

    def __init__(self, delivery: Delivery, spoil: object = lambda piece: [piece]) -> None:
        self.delivery, self.spoil, self.asked = delivery, spoil, []
        self.came: queue.Queue[Piece] = queue.Queue()

    def ask(self, device: str, recording: str, offset: int) -> None:
        self.asked.append(offset)
        self.delivery.ask(recording, str(offset))
        while (piece := self.delivery.piece()) is not None:
            for each in self.spoil(piece):  # type: ignore[operator]
                self.came.put(each)

    @contextlib.contextmanager
    def pieces(self, device: str) -> Iterator[queue.Queue[Piece]]:
        yield self.came


def kept(state: Path, size: int = 0) -> tuple[Path, bytes]:
    """A recording on a device's disk; with `size` bytes of anything."""
    file = state / "evidence" / NAME
    file.parent.mkdir(parents=True)
    if size:
        file.write_bytes(bytes(range(256)) * (size // 256) + bytes(size % 256))
    else:
        recording(file)
    return file, file.read_bytes()


def partial(folder: Path, most: int = 10**8) -> Partial:
    return Partial(folder / "hub" / "edge-1" / NAME, "edge-1", most)


def never() -> bool:
    return False


def test_a_recording_comes_in_several_requests_as_it_was(tmp_path: Path) -> None:
    _, data = kept(tmp_path, size=2 * REQUEST_BYTES + 77)
    source = Direct(Delivery(config(send_kb_s=1e6), tmp_path, SimulatedClock(0)))
    fetch.fetch(source, "edge-1", partial(tmp_path), NAME, never)
    assert source.asked == [0, REQUEST_BYTES, 2 * REQUEST_BYTES]
    assert (tmp_path / "hub" / "edge-1" / NAME).read_bytes() == data
    assert [file.name for file in (tmp_path / "hub" / "edge-1").iterdir()] == [NAME]


def test_a_hub_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    kept(tmp_path, size=REQUEST_BYTES)
    delivery = Delivery(config(send_kb_s=1e6), tmp_path, SimulatedClock(0))
    delivery.ask(NAME, "0")
    before = partial(tmp_path)
    for _ in range(3):
        assert not before.take(delivery.piece())  # type: ignore[arg-type]
    source = Direct(Delivery(config(send_kb_s=1e6), tmp_path, SimulatedClock(0)))
    fetch.fetch(source, "edge-1", partial(tmp_path), NAME, never)
    assert source.asked == [3 * PIECE_BYTES]


def test_lost_repeated_and_foreign_pieces_are_made_good(tmp_path: Path) -> None:
    _, data = kept(tmp_path, size=5 * PIECE_BYTES)
    lost = [2 * PIECE_BYTES]

    def spoil(piece: Piece) -> list[Piece]:
        foreign = msgspec.structs.replace(piece, recording="20231114T221325.000Z-other.mcap")
        if piece.offset in lost:
            lost.remove(piece.offset)
            return [foreign]
        return [piece, foreign, piece]

    source = Direct(Delivery(config(send_kb_s=1e6), tmp_path, SimulatedClock(0)), spoil)
    fetch.fetch(source, "edge-1", partial(tmp_path), NAME, never, patience_s=0.2)
    assert source.asked == [0, 2 * PIECE_BYTES]
    assert (tmp_path / "hub" / "edge-1" / NAME).read_bytes() == data


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda p: [msgspec.structs.replace(p, data=b"\1" + p.data[1:])], "is not what its SHA-256 says"),
        (lambda p: [msgspec.structs.replace(p, size=p.size - 1)], "has more bytes than it said"),
        (lambda p: [msgspec.structs.replace(p, size=10**9)], "1,000,000,000 bytes, at most 100,000,000 are taken"),
        (lambda p: [msgspec.structs.replace(p, sha256="../../etc")], "names no SHA-256"),
    ],
)
def test_what_is_not_what_it_says_is_refused_before_it_is_read(tmp_path: Path, spoil: object, told: str) -> None:
    kept(tmp_path, size=999)
    source = Direct(Delivery(config(), tmp_path, SimulatedClock(0)), spoil)
    with pytest.raises(WireError, match=told):
        fetch.fetch(source, "edge-1", partial(tmp_path), NAME, never)
    assert [*(tmp_path / "hub").rglob("*.*")] == []


@pytest.mark.parametrize(
    ("name", "offset", "told"),
    [
        ("20231114T221325.000Z-gone.mcap", "0", "is not on the device"),
        ("../outbox.db", "0", "is not on the device"),
        (NAME, "-1", "none at '-1'"),
        (NAME, "999", "has 999 bytes"),
        ("20231114T221325.000Z-open.mcap", "0", "is still being written; ask again"),
    ],
)
def test_a_device_says_why_it_sends_nothing(tmp_path: Path, name: str, offset: str, told: str) -> None:
    kept(tmp_path, size=999)
    (tmp_path / "evidence" / ".20231114T221325.000Z-open.mcap.part").write_bytes(b"")
    delivery = Delivery(config(), tmp_path, SimulatedClock(0))
    with pytest.raises(LinesideError, match=told):
        delivery.ask(name, offset)
    assert delivery.piece() is None


def test_a_device_sends_nothing_unless_its_file_allows_it(tmp_path: Path) -> None:
    kept(tmp_path, size=999)
    with pytest.raises(LinesideError, match=r'edge-1: does not send recordings; set \[evidence\] send = "request"'):
        Delivery(DeviceConfig(device=config().device, sensors=SENSORS), tmp_path, SimulatedClock(0)).ask(NAME, "0")


def test_a_device_keeps_to_its_pace(tmp_path: Path) -> None:
    kept(tmp_path, size=REQUEST_BYTES)
    clock = SimulatedClock(0)
    delivery = Delivery(config(send_kb_s=PIECE_BYTES / 1000), tmp_path, clock)
    delivery.ask(NAME, "0")
    sent = 0
    for _ in range(100):
        while delivery.piece() is not None:
            sent += 1
        clock.sleep(0.1)
    assert sent == pytest.approx(11, abs=1)  # in ten seconds, one that was saved up


def unpacking_into(path: Path, size: int) -> None:
    """A file whose hash is right and whose content is a trap."""
    with path.open("wb") as file:
        writer = Writer(file, chunk_size=10**9, compression=CompressionType.ZSTD)
        writer.start()
        schema = writer.register_schema("lineside.Series", "jsonschema", b"{}")
        writer.add_message(writer.register_channel("/vib0", "json", schema), 0, bytes(size), 0)
        writer.finish()


def test_a_small_file_that_unpacks_into_a_large_one_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / NAME
    unpacking_into(path, safe.CHUNK_BYTES + 1)
    assert path.stat().st_size < 20_000
    with pytest.raises(WireError, match="has a chunk that would unpack into 33,554,"):
        safe.check(path)
    assert not path.exists()
    path.write_bytes(b"no recording")
    with pytest.raises(WireError, match="is no recording that can be read"):
        safe.check(path)


class Room:
    """A hub's room, with a device whose presence is told by hand."""

    def __init__(self, folder: Path, source: fetch.Source, settings: HubSettings = HUB) -> None:
        self.word, self.clock, self.arrived = "online", SimulatedClock(START_NS + 3600 * NS), threading.Event()
        folder = folder / "hub"
        self.room = Evidence(settings, folder, source, lambda _: self.word, self.clock, lambda *_: self.arrived.set())
        self.room.start()


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def test_the_hub_tells_how_a_recording_stands_and_why_it_is_not_here(
    tmp_path: Path, closing: contextlib.ExitStack
) -> None:
    kept(tmp_path)
    not_allowed = Direct(Delivery(config(send="never"), tmp_path, SimulatedClock(0)))
    made = Room(tmp_path, not_allowed)
    closing.callback(made.room.stop)
    told = alarm()
    assert made.room.told(msgspec.structs.replace(told, recording="")).word == "none"
    assert made.room.told(told) == msgspec.convert({"word": "missing"}, type(made.room.told(told)))
    made.word = "offline"
    with pytest.raises(LinesideError, match="edge-1: is offline now"):
        made.room.ask(told)
    made.word = "online"
    made.room.ask(told)
    assert wait(lambda: made.room.told(told).word == "missing")
    assert "does not send recordings" in made.room.told(told).reason
    with pytest.raises(LinesideError, match="is no recording of an alarm"):
        made.room.ask(msgspec.structs.replace(told, recording="../../plant.toml"))
    off = Room(tmp_path / "off", not_allowed, HubSettings())
    closing.callback(off.room.stop)
    assert off.room.told(told).word == "off"
    with pytest.raises(LinesideError, match="this hub asks for no recordings"):
        off.room.ask(told)


def test_old_recordings_go_and_the_oldest_beyond_the_bound(tmp_path: Path, closing: contextlib.ExitStack) -> None:
    settings = HubSettings(evidence=True, evidence_mb=0.002, evidence_file_mb=0.001, keep_days=KeepDays(evidence=0.5))
    made = Room(tmp_path, Direct(Delivery(config(), tmp_path, SimulatedClock(0))), settings)
    closing.callback(made.room.stop)
    folder = tmp_path / "hub" / "edge-1"
    folder.mkdir(parents=True)
    now_s = made.clock.now_ns() // NS
    for name, age_s, size in (("old", 50_000, 1), ("first", 900, 900), ("second", 600, 900), ("third", 300, 900)):
        file = folder / f"{name}.mcap"
        file.write_bytes(bytes(size))
        os.utime(file, (now_s - age_s, now_s - age_s))
    made.room.sweep()
    assert sorted(file.name for file in folder.iterdir()) == ["second.mcap", "third.mcap"]


@pytest.mark.slow
@pytest.mark.parametrize("split", [False, True], ids=["one process", "two processes"])
def test_from_the_agents_disk_over_a_real_broker(tmp_path: Path, closing: contextlib.ExitStack, *, split: bool) -> None:
    """Alarms that are raised meanwhile get through; who floods the topic disturbs nothing."""
    line = LineBroker(tmp_path, "edge-1")
    closing.callback(line.stop)
    install(tmp_path / "state")
    _, data = kept(tmp_path / "state")
    file = device_file(tmp_path, line)
    file.write_text(file.read_text() + '\n[evidence]\nsend = "request"\nkeep_free_mb = 0.0\n')
    stop = threading.Event()
    settings = msgspec.structs.replace(load(file, DeviceConfig), commissioning=CommissioningSettings(minutes=60.0))
    agent = Agent(settings, tmp_path, SystemClock(), tmp_path / "agent.sock" if split else None)
    running = threading.Thread(target=agent.run, args=(stop,))
    running.start()
    closing.callback(running.join)
    closing.callback(stop.set)
    if split:
        closing.callback(Uplink(file, tmp_path / "agent.sock").kill)
    flood = mqtt.client(line.plant.connection("edge-1"), "flood", tmp_path)
    mqtt.connect(flood, line.plant.connection("edge-1"))
    closing.callback(flood.loop_stop)
    foreign = Piece(device="edge-1", recording="other.mcap", size=1, sha256="0" * 64, offset=7, data=bytes(100))
    source = fetch.Line(line.plant, tmp_path, SystemClock())
    made = Room(tmp_path, source)
    closing.callback(made.room.stop)
    assert not made.arrived.is_set()
    assert wait(lambda: agent.signs().status.startswith("commissioning"))  # it answers from then on
    made.room.ask(alarm())
    for _ in range(50):
        flood.publish(topics.name(SITE, "edge-1", "evidence"), wire.encode(foreign), qos=0)
        flood.publish(topics.name(SITE, "edge-1", "evidence"), b"no piece at all", qos=0)
    assert wait(lambda: made.room.told(alarm()).word in ("here", "missing"))
    path = made.room.here(alarm())
    assert path is not None, made.room.told(alarm())
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(data).digest()
    assert [each.key for each in Recording(path).alarms()] == ["k1"]
