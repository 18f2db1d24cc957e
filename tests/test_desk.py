"""Acting on alarms: every action is a row, the next look shows it, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from hub.accounts import Who
from hub.actions import Actions
from hub.alarms import Action, Event
from hub.dashboard import controls
from hub.dashboard.gate import Visitor
from hub.dashboard.language import Language
from hub.dashboard.visit import Visit
from hub.desk import Desk
from hub.ingest import Presence
from hub.inhibition import Floor
from hub.line import Hub
from hub.store import Store
from hub.tables import row
from lineside import wire
from lineside.clock import NS, SimulatedClock
from lineside.errors import LinesideError
from lineside.messages import Alarm
from lineside.plant import AlarmRules, PlantConfig
from tests.test_alarm_rules import alarm, over, spell
from tests.test_hub_alarms import arrival

START_S = 10_000


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock(START_S * NS)


@pytest.fixture
def desk(store: Store, clock: SimulatedClock) -> Desk:
    return Desk(store, AlarmRules(), clock)


def keep(kept: Store, *said: Alarm) -> None:
    kept.add([row("alarm", each, wire.encode(each), each.time_ns) for each in said])


def seen(desk: Desk, clock: SimulatedClock) -> list[Event]:
    return desk.events(clock.now_ns(), Floor())


def test_every_action_is_a_row_that_any_hub_reads(store: Store, desk: Desk, clock: SimulatedClock) -> None:
    said = spell(START_S - 100, START_S - 50)
    keep(store, *said)
    assert [event.state for event in seen(desk, clock)] == ["CLEARED_UNACK"]
    before = desk.actions.version
    desk.acknowledge("press-3", said[0].key, "Sato", "looked at it")
    desk.silence("press-3", "", (START_S + 60) * NS, "Abe", "we repair it")
    assert desk.actions.version == before + 2
    (event,) = seen(desk, clock)
    assert (event.state, event.acknowledged_by) == ("CLEARED_ACK", "Sato")
    other = Desk(store, AlarmRules(), clock)
    assert [e.silence.who for e in seen(other, clock) if e.silence] == ["Abe"]
    other.unsilence("press-3", "", "Abe", "")
    assert seen(desk, clock)[0].silence is None
    rows = Actions(store.engine).since(0)
    assert [(each.who, each.what, each.why) for each in rows] == [
        ("Sato", "acknowledge", "looked at it"),
        ("Abe", "silence", "we repair it"),
        ("Abe", "unsilence", ""),
    ]
    assert rows[0] == Action(START_S * NS, "Sato", "acknowledge", "press-3", said[0].key, "looked at it")


def test_a_silence_outlives_the_day_in_which_actions_are_read(store: Store, desk: Desk, clock: SimulatedClock) -> None:
    desk.silence("press-3", "", clock.now_ns() + 3 * 86_400 * NS, "Abe", "")
    clock.sleep(2 * 86_400)
    keep(store, alarm(clock.now_ns() / NS))
    assert [event.calls for event in seen(desk, clock)] == [False]
    clock.sleep(86_400)
    assert [event.calls for event in seen(desk, clock)] == [True]


def test_one_acknowledgement_is_of_every_raise_of_a_flapping_event(
    store: Store,
    desk: Desk,
    clock: SimulatedClock,
) -> None:
    said = [*spell(START_S - 90, START_S - 80), alarm(START_S - 40)]
    keep(store, *said)
    desk.acknowledge("press-3", said[2].key, "Sato", "")
    assert set(store.acknowledgements()) == {("press-3", said[0].key), ("press-3", said[2].key)}
    (event,) = seen(desk, clock)
    assert (event.state, len(event.keys)) == ("ACTIVE_ACK", 2)
    later = [over(said[2], START_S - 30), *spell(START_S - 10, START_S - 5)]
    keep(store, *later)
    (event,) = seen(desk, clock)
    assert (event.state, len(event.keys)) == ("ACTIVE_ACK", 3)  # it flaps on, under the same acknowledgement
    assert store.acknowledgements()["press-3", later[1].key][0] == "Sato"  # so that the store can close it
    told = [(each.who, each.what) for each in desk.history("press-3", said[0].key)]
    assert told.count(("press-3", "raise")) == 3
    assert told.count(("Sato", "acknowledge")) == 3


def test_an_unknown_alarm_is_not_acknowledged(desk: Desk) -> None:
    for act in (lambda: desk.acknowledge("press-3", "no", "Sato", ""), lambda: desk.history("press-3", "no")):
        with pytest.raises(LinesideError, match="has raised none of this key"):
            act()
    assert desk.actions.since(0) == []


@pytest.fixture
def hub(tmp_path: Path, clock: SimulatedClock) -> Iterator[Hub]:
    """A hub that was never started: what it shows comes from its store alone."""
    (tmp_path / "secrets").mkdir()
    for user in ("hub", "operator", "press-3", "press-4"):
        (tmp_path / "secrets" / f"{user}.password").write_text("secret")
    made = Hub(PlantConfig(site="line1", devices=["press-3", "press-4"]), tmp_path, clock)
    made.ingest.presence.update({name: Presence("online", 0) for name in ("press-3", "press-4")})
    yield made
    made.store.close()


def words(hub: Hub) -> dict[str, str]:
    hub.clock.sleep(1.0)  # beyond the time for which a look is shared
    return {station.device: station.word for station in hub.look().stations}


def live(hub: Hub, device: str, state: str = "") -> None:
    now_ns = hub.clock.now_ns()
    score = msgspec.structs.replace(arrival(now_ns).score, device=device, state=state)
    hub.store.add([row("score", score, wire.encode(score), now_ns)])


def test_a_look_shows_what_was_done(hub: Hub, clock: SimulatedClock) -> None:
    live(hub, "press-3")
    raised = alarm(START_S - 1)
    keep(hub.store, raised)
    assert words(hub)["press-3"] == "alarm"
    hub.silence("press-3", raised.subject, clock.now_ns() + 60 * NS, "Sato", "known")
    (event,) = hub.look().events
    assert (event.state, event.calls) == ("ACTIVE_UNACK", False)
    assert words(hub)["press-3"] == "silenced"  # not normal: the condition holds
    hub.unsilence("press-3", raised.subject, "Sato")
    assert words(hub)["press-3"] == "alarm"
    hub.acknowledge("press-3", raised.key, "Sato", "I go")
    assert hub.look().events[0].state == "ACTIVE_ACK"
    assert [each.what for each in hub.history("press-3", raised.key)] == [
        "raise",
        "silence",
        "unsilence",
        "acknowledge",
    ]
    assert hub.alarms(0) == list(hub.look().events)


def test_a_look_inhibits_and_groups_by_what_the_hub_knows(hub: Hub, clock: SimulatedClock) -> None:
    keep(hub.store, alarm(START_S - 2), alarm(START_S - 1, device="press-4"))
    live(hub, "press-3", "maintenance")
    live(hub, "press-4", "product-a")
    look = hub.look()
    assert {e.raised.device: e.inhibited for e in look.events} == {
        "press-3": "station of press-3 is in maintenance",
        "press-4": "",
    }
    assert [len(group.events) for group in look.groups] == [2]
    assert look.rates is not None
    assert look.rates.last_hour == 2
    hub.ingest.presence["press-4"] = Presence("offline", 0)
    clock.sleep(10.0)  # press-3 has fallen silent: what it said of itself is no longer known
    assert {e.raised.device: e.inhibited for e in hub.look().events} == {"press-3": "", "press-4": "press-4 is offline"}
    assert [len(group.events) for group in hub.look().groups] == [2]


def test_the_buttons_silence_what_an_alarm_is_about_and_note_who(hub: Hub, clock: SimulatedClock) -> None:
    keep(hub.store, alarm(START_S - 5, kind="drift", subject="cam0"))
    visit = Visit(hub, Visitor(Who("Sato", "operator"), None, ""), Language("en"))
    controls.silence(visit, hub.look().events[0], minutes=10)
    later = alarm(START_S + 300, kind="drift", subject="cam0", key="another")
    keep(hub.store, later)
    clock.sleep(599)
    assert [event.calls for event in hub.look().events] == [False, False]
    clock.sleep(1)
    assert [event.calls for event in hub.look().events] == [True, True]
    controls.silence(visit, hub.look().events[0], minutes=60)
    (running,) = hub.look().silences
    controls.hear(visit, running)
    assert [event.calls for event in hub.look().events] == [True, True]
    told = [(each.who, each.action, each.subject, each.outcome) for each in hub.accounts.audit()]
    assert told == [("Sato", "silence", "press-3 cam0", f"{minutes} min") for minutes in (0, 60, 10)]
