"""What the releases and fleet pages are made of: hub.releases, hub.expiries, and the news that pages look for."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from hub import releases
from hub.expiries import expiries
from hub.line import Hub
from hub.tables import row
from hub.watch import Line, Station
from lineside import wire
from lineside.clock import NS, SystemClock
from lineside.messages import Installed, Manifest
from lineside.plant import PlantConfig, RolloutSettings
from lineside.rollout_record import Event, Record, policy, rings
from lineside.rollout_records import Records
from lineside.targets import Terms
from tests.line_pages import DAYS, signed_for_a_while
from tests.test_alarm_rules import alarm

NOW = 1000 * NS
DEVICES = ("edge-1", "edge-2", "edge-3")


def record(name: str, state: str, begun_s: int = 900) -> Record:
    return Record(
        rollout=name,
        versions={"camera": 3},
        rings=rings(["edge-1", "edge-2"], [100]),
        policy=policy(RolloutSettings(), approve=True, soak_min=10),
        terms=Terms(),
        state=state,  # type: ignore[arg-type]
        since_ns=begun_s * NS,
        events=[Event(begun_s * NS, "ring 1 of 2 opened: edge-1, edge-2")],
    )


def manifest(device: str, **changed: object) -> Manifest:
    one = Installed(version=2, sha256="ab", precision="int8", since_ns=1, previous_version=1)
    camera = msgspec.structs.replace(one, **changed)
    return Manifest(device=device, station="p", time_ns=NOW, agent="0.1", encoders={"camera": camera})


def line(**presence: str) -> Line:
    stations = [
        Station(
            device, "press", "normal", presence.get(device.replace("-", "_"), "online"), True, None, None, False, ()
        )
        for device in DEVICES
    ]
    return Line(NOW, True, tuple(stations), ())


def test_a_rollout_tells_what_each_device_waits_for_and_why_one_failed(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.write(record("one", "open"))
    told = {
        "edge-1": manifest("edge-1", rollout="one", candidate=3, phase="shadow"),
        "edge-2": manifest("edge-2", rollout="one", candidate=3, phase="failed", reason="more anomalies"),
    }
    found = releases.look(line(edge_1="offline"), told, lambda *_: "", records, NOW)
    (rollout,) = found.rollouts
    assert [(each.device, each.progress, each.told) for each in rollout.devices] == [
        ("edge-1", "away", "offline; it catches up when it comes back"),
        ("edge-2", "failed", "more anomalies"),
    ]
    assert [(one.device, one.installed.version if one.installed else 0) for one in found.runs] == [
        ("edge-1", 2),
        ("edge-2", 2),
    ]


def test_what_a_device_did_not_sign_counts_for_no_rollout_and_is_shown_with_the_doubt(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.write(record("one", "open"))
    told = {"edge-1": manifest("edge-1", rollout="one", candidate=3, version=3)}
    believed = releases.look(line(), told, lambda *_: "", records, NOW)
    doubted = releases.look(line(), told, lambda *_: "signed by another key", records, NOW)
    assert [each.devices[0].progress for each in believed.rollouts] == ["done"]
    assert [(each.devices[0].progress, each.devices[0].told) for each in doubted.rollouts] == [
        ("busy", "signed by another key")
    ]
    assert [one.doubt for one in doubted.runs] == ["signed by another key"]


def test_rollouts_under_way_come_first_then_the_latest_that_ended(tmp_path: Path) -> None:
    records = Records(tmp_path)
    for at, name in enumerate("abcde"):
        records.write(record(name, "finished", at))
    records.write(record("running", "approval", 0))
    found = releases.look(line(), {}, lambda *_: "", records, NOW)
    assert [each.record.rollout for each in found.rollouts] == ["running", "e", "d", "c"]


def test_a_record_that_cannot_be_read_is_named_and_versions_stay(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    found = releases.look(line(), {"edge-1": manifest("edge-1")}, lambda *_: "", Records(tmp_path), NOW)
    assert "bad.json" in found.trouble
    assert len(found.runs) == 1


def test_what_ends_first_is_first_and_the_newest_of_a_role_counts(tmp_path: Path) -> None:
    folder = tmp_path / "repository" / "metadata"
    signed_for_a_while(folder)
    (folder / "1.snapshot.json").write_text((folder / "timestamp.json").read_text())  # an older one, which has ended
    (folder / "torn.json").write_text("{")
    found = expiries(PlantConfig(site="line1", devices=["edge-1"]), tmp_path, time.time_ns())
    assert [each.what for each in found] == ["timestamp", "snapshot", "camera", "targets", "root"]
    assert [each.level for each in found] == ["alarm", "warning", "fresh", "fresh", "fresh"]
    assert [each.left_days for each in found] == pytest.approx(sorted(DAYS.values()), abs=0.01)


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "hub.password").write_text("hub's own")
    return Hub(PlantConfig(site="line1", devices=["press-3"]), tmp_path, SystemClock())


def test_an_alarm_that_is_stored_is_news_and_the_next_look_has_it(hub: Hub) -> None:
    assert hub.look().events == ()
    before = hub.news
    said = msgspec.structs.replace(alarm(1.0), time_ns=time.time_ns(), onset_ns=time.time_ns())
    hub.keeper.add([row("alarm", said, wire.encode(said), time.time_ns())])
    assert hub.news != before
    assert [event.raised.key for event in hub.look().events] == [said.key]
    again = hub.news
    hub.acknowledge(said.device, said.key, "Sato")
    assert hub.news != again
    assert hub.look().events[0].acknowledged_by == "Sato"
    hub.store.close()
