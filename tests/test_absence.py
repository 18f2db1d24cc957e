"""A device that is away raises an alarm of the hub's own: hub.absence, on a real store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hub import inhibition
from hub.absence import Absence
from hub.desk import Desk
from hub.ingest import Presence
from hub.inhibition import Floor
from hub.store import Store, database_url
from lineside.clock import NS, SimulatedClock
from lineside.plant import AlarmRules

RULES = AlarmRules(hysteresis_s=0.0)


class Line:
    """A hub's store, and devices' last words as a test says them."""

    def __init__(self, folder: Path) -> None:
        self.clock = SimulatedClock(1_000 * NS)
        self.store = Store(database_url("sqlite:///hub.db", folder))
        self.presence: dict[str, Presence] = {}
        self.absence = self.begun()

    def begun(self) -> Absence:
        return Absence(self.store, lambda: self.presence, RULES.offline_s, self.clock)

    def says(self, word: str, device: str = "press-3") -> None:
        self.presence[device] = Presence(word, self.clock.now_ns())

    def after(self, seconds: float) -> list[tuple[str, str]]:
        """Alarms (kind, state of the event) once so many seconds have gone."""
        self.clock.sleep(seconds)
        self.absence.turn()
        desk = Desk(self.store, RULES, self.clock)
        events = desk.events(self.clock.now_ns(), Floor({name: word.word for name, word in self.presence.items()}))
        assert all(not event.inhibited for event in events)
        return [(event.raised.kind, event.state) for event in events]


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path)
    yield made
    made.store.close()


def test_a_device_that_stays_away_is_told_once_and_cleared_when_it_is_back(line: Line) -> None:
    line.says("online")
    assert line.after(300) == []
    line.says("offline")
    assert line.after(59) == []
    assert line.after(2) == [("device", "ACTIVE_UNACK")]
    assert line.after(300) == [("device", "ACTIVE_UNACK")]
    (told,) = line.store.alarms()
    assert "press-3 has been offline for 61 s: check its power" in told.text
    line.says("online")
    assert line.after(1) == [("device", "CLEARED_UNACK")]
    line.says("offline")
    assert sorted(line.after(61)) == [("device", "ACTIVE_UNACK"), ("device", "CLEARED_UNACK")]
    assert not any(line.store.gaps("press-3").values())


def test_a_hub_that_begins_again_goes_on_with_what_was_raised(line: Line) -> None:
    line.says("offline")
    assert line.after(61) == [("device", "ACTIVE_UNACK")]
    line.absence = line.begun()
    line.says("offline")
    assert line.after(61) == [("device", "ACTIVE_UNACK")]
    line.says("online")
    assert line.after(1) == [("device", "CLEARED_UNACK")]


def test_a_device_that_a_person_ended_or_that_is_back_in_time_raises_nothing(line: Line) -> None:
    line.says("stopped")
    assert line.after(600) == []
    line.says("offline")
    line.after(30)
    line.says("online")
    assert line.after(600) == []


def test_it_calls_though_the_device_is_away() -> None:
    assert inhibition.RULES["device"] == ()
