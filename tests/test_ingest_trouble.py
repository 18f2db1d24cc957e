"""Devices that flood or live in the future, databases that are locked or full: named, counted, and the hub goes on."""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from hub.ingest import AHEAD_NS, Ingest
from hub.packets import Publish
from hub.store import Store, database_url
from hub.trouble import trouble
from lineside import topics, wire
from lineside.clock import NS, Clock, SimulatedClock, SystemClock
from lineside.mqtt import BrokerConfig
from tests import line_postgres
from tests.line_broker import wait
from tests.test_ingest import SCORE, Device, Line, Slow


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path)
    yield made
    made.broker.stop()
    made.store.close()


@pytest.fixture
def devices(line: Line) -> Iterator[list[Device]]:
    made = [Device(line, name) for name in ("press-3", "press-4")]
    yield made
    for device in made:
        device.client.disconnect()
        device.client.loop_stop()


def message(device: str, seq: int, start_ns: int = 0, kind: str = "score") -> Publish:
    said = msgspec.structs.replace(SCORE, device=device, epoch=1, seq=seq, start_ns=start_ns)
    return Publish(topics.name("line1", device, kind).encode(), 1, wire.encode(said))


def alone(folder: Path, clock: Clock, queue_rows: int = 100) -> Ingest:
    """An ingest that was never started: what it takes stays in its queue."""
    store = Store(database_url("sqlite:///hub.db", folder))
    store.close()
    return Ingest("line1", BrokerConfig(), folder, store, clock=clock, queue_rows=queue_rows)


def test_a_flood_is_turned_away_by_name_while_others_come_in(
    line: Line, devices: list[Device], caplog: pytest.LogCaptureFixture
) -> None:
    keeper = Slow(line.store)
    loud, quiet = devices
    with caplog.at_level(logging.WARNING, "hub.ingest"):
        ingest = line.ingest(keeper, queue_rows=100)
        for seq in range(1, 501):
            loud.send(SCORE, seq)
        assert wait(lambda: ingest.blamed.queue_full["press-3"] > 200)
        for seq in range(1, 11):
            quiet.send(msgspec.structs.replace(SCORE, device="press-4"), seq)
        keeper.go.set()
        assert wait(lambda: quiet.acknowledged() == set(range(1, 11)))
        assert wait(lambda: ingest.counts.received == 510)
        ingest.stop()
    assert ingest.blamed.queue_full == {"press-3": ingest.counts.queue_full}
    told = [each.message for each in caplog.records if "floods it" in each.message]
    assert len(told) == 1
    assert "press-3" in told[0]
    assert len(line.store.scores("press-3")) == 500 - ingest.counts.queue_full


def test_a_device_under_its_share_waits_and_its_message_is_not_taken(tmp_path: Path) -> None:
    taking = alone(tmp_path, SystemClock(), queue_rows=4)
    for seq in range(1, 5):
        assert taking.take([message("press-3", seq)]) == 1
    assert taking.take([message("press-3", 5), message("press-4", 1), message("press-4", 2)]) == 1
    assert (taking.counts.received, taking.counts.queue_full, taking.waiting) == (5, 1, 4)


def test_a_clock_that_runs_ahead_is_stored_counted_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = SimulatedClock(1000 * NS)
    taking = alone(tmp_path, clock)
    with caplog.at_level(logging.WARNING, "hub.ingest"):
        taking.take([message("press-3", seq, clock.now_ns() + seq * AHEAD_NS) for seq in (1, 2)])
        taking.take([message("press-3", 3, clock.now_ns() + 3 * AHEAD_NS)])
    assert (taking.counts.ahead, taking.blamed.ahead, taking.waiting) == (2, {"press-3": 2}, 3)
    assert ["clock of press-3 is 120 s ahead" in each.message for each in caplog.records] == [True]


def test_another_version_of_the_protocol_is_refused_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    taking = alone(tmp_path, SystemClock())
    newer = message("press-3", 1)
    with caplog.at_level(logging.WARNING, "hub.ingest"):
        assert taking.take([newer._replace(topic=newer.topic.replace(b"/v1/", b"/v2/"))]) == 1
    assert (taking.counts.refused, taking.blamed.refused, taking.waiting) == (1, {}, 0)
    assert "speaks v2, this side v1" in caplog.text


def test_a_device_that_babbles_hides_no_other_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    taking = alone(tmp_path, SystemClock())
    taking.take([message("press-3", 1), message("press-4", 1)])
    with caplog.at_level(logging.WARNING, "hub.ingest"):
        taking.take([message(device, 2)._replace(payload=b"{") for device in ("press-3", "press-3", "press-4")])
    assert [("press-3" in told, "press-4" in told) for told in caplog.messages] == [(True, False), (False, True)]
    assert taking.blamed.refused == {"press-3": 2, "press-4": 1}
    assert all("payload is no" in told and "; mend what sends it" in told for told in caplog.messages)


def test_an_oversized_message_is_refused_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    taking = alone(tmp_path, SystemClock())
    with caplog.at_level(logging.WARNING, "hub.ingest"):
        taking.take([message("press-3", 1)._replace(payload=b" " * (wire.MAX_BYTES + 1)), message("press-3", 2)])
    assert (taking.counts.refused, taking.waiting) == (1, 1)
    assert "payload of 1000001 bytes" in caplog.text


@pytest.mark.slow
def test_a_locked_database_is_counted_and_what_came_is_sent_again(line: Line, devices: list[Device]) -> None:
    short = Store(database_url("sqlite:///hub.db", line.folder))
    with contextlib.closing(sqlite3.connect(line.folder / "hub.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        sa.event.listen(short._engine, "connect", lambda made, _: made.execute("PRAGMA busy_timeout=50"))
        short.close()  # its first connection was made before
        ingest = line.ingest(short)
        devices[0].send(SCORE, 1)
        assert wait(lambda: ingest.counts.database_locked == 1)
        assert devices[0].acks == []
        other.execute("ROLLBACK")
    devices[0].send(SCORE, 1)
    assert wait(lambda: devices[0].acknowledged() == {1})
    ingest.stop()
    assert ingest.counts.commit_failed == 1


@pytest.mark.slow
def test_a_full_database_is_counted_and_the_hub_goes_on(line: Line, devices: list[Device]) -> None:
    pages: list[int] = []

    def bound(made: sqlite3.Connection, _record: object) -> None:
        pages.append(made.execute("PRAGMA max_page_count").fetchone()[0])
        made.execute("PRAGMA max_page_count=1" if len(pages) == 1 else "PRAGMA max_page_count=1000000")

    line.store.close()
    sa.event.listen(line.store._engine, "connect", bound)
    ingest = line.ingest()
    padded = msgspec.structs.replace(SCORE, state="x" * 200_000)
    devices[0].send(padded, 1)
    assert wait(lambda: ingest.counts.database_full == 1)
    line.store.close()  # the next connection has room
    devices[0].send(padded, 1)
    assert wait(lambda: devices[0].acknowledged() == {1})
    ingest.stop()
    assert (ingest.counts.database_full, ingest.counts.commit_failed) == (1, 1)


@pytest.mark.slow
def test_two_hubs_on_one_postgresql_share_the_work_and_store_everything_once(
    line: Line, devices: list[Device], tmp_path: Path
) -> None:
    with line_postgres.server() as text, contextlib.ExitStack() as held:
        url = database_url(text, tmp_path)
        stores = [Store(url), Store(url)]
        hubs = [
            Ingest("line1", line.plant.connection("hub"), tmp_path, store, clock=SystemClock(), shared=True)
            for store in stores
        ]
        for hub, store in zip(hubs, stores, strict=True):
            held.callback(store.close)
            held.callback(hub.stop)
            hub.start()
        assert wait(lambda: all(hub.connected for hub in hubs))
        for seq in range(1, 301):
            for device in devices:
                device.send(msgspec.structs.replace(SCORE, device=device.name), seq)
                if seq % 3 == 0:
                    device.send(msgspec.structs.replace(SCORE, device=device.name), seq - 1)
        assert wait(lambda: all(device.acknowledged() == set(range(1, 301)) for device in devices))
        assert wait(lambda: sum(hub.counts.received for hub in hubs) == 800)
        for hub in hubs:
            hub.stop()
        assert all(hub.counts.stored > 50 for hub in hubs)
        assert sum(hub.counts.stored for hub in hubs) == 600
        assert sum(hub.counts.duplicates for hub in hubs) == 200
        assert stores[0].counts()["scores"] == 600
        assert stores[1].gaps("press-3") == {}


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("database is locked", "locked"),
        ("database or disk is full", "full"),
        ("unable to open database file", "unreachable"),
        ("something else", "failed"),
    ],
)
def test_why_a_database_did_not_do_it(said: str, word: str) -> None:
    assert trouble(OperationalError("INSERT", {}, sqlite3.OperationalError(said))) == word


def test_postgresql_tells_by_its_states() -> None:
    class Full(Exception):
        sqlstate = "53100"

    assert trouble(OperationalError("INSERT", {}, Full())) == "full"


@pytest.mark.slow
def test_a_second_ingest_on_sqlite_is_refused_by_name(line: Line) -> None:
    line.folder.joinpath("plant.toml").write_text(
        f'site = "line1"\ndevices = ["press-3"]\n[broker]\nport = {line.plant.broker.port}\n'
    )
    command = [sys.executable, "-m", "lineside", "hub", "ingest", "--config", str(line.folder / "plant.toml"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        try:
            assert json.loads(first.stdout.readline()) == {"site": "line1", "shared": False}
            second = subprocess.run(command, capture_output=True, text=True, check=False)
        finally:
            first.terminate()
        assert first.wait(60) == 0
    assert second.returncode == 2
    assert "another hub uses this state folder" in second.stderr


@pytest.mark.slow
def test_the_hub_speaks_tls_and_trusts_nobody_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    for name in ("tls", "other"):
        files = ["-keyout", f"{name}.key", "-out", f"{name}.crt", "-addext", "subjectAltName=IP:127.0.0.1"]
        subprocess.run([*make.split(), *files], cwd=tmp_path, check=True, capture_output=True)
    line = Line(tmp_path, cert_file="tls.crt", key_file="tls.key", ca_file="tls.crt")
    device = Device(line)
    ingest = line.ingest()
    padded = msgspec.structs.replace(SCORE, state="x" * 50_000)  # several TLS records each
    for seq in range(1, 101):
        device.send(padded, seq)
    assert wait(lambda: device.acknowledged() == set(range(1, 101)))
    ingest.stop()
    strange = msgspec.structs.replace(line.plant.connection("hub"), ca_file="other.crt")
    with caplog.at_level(logging.WARNING, "hub.subscriber"):
        refusing = Ingest("line1", strange, tmp_path, line.store, clock=SystemClock())
        refusing.start()
        assert wait(lambda: "certificate verify failed" in caplog.text)
        assert not refusing.connected
        refusing.stop()
    device.client.disconnect()
    device.client.loop_stop()
    line.broker.stop()
    line.store.close()


def test_a_hub_with_a_wrong_password_says_so(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    (line.folder / "secrets" / "hub.password").write_text("not it")
    with caplog.at_level(logging.WARNING, "hub.subscriber"):
        refused = Ingest("line1", line.plant.connection("hub"), line.folder, line.store, clock=SystemClock())
        refused.start()
        assert wait(lambda: "broker user hub: refused (0x87)" in caplog.text)
        assert not refused.connected
        refused.stop()
