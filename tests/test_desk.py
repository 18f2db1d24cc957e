"""Acting on alarms: every action is a row, the next look shows it, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nicegui import Client, ui
from nicegui.events import GenericEventArguments
from nicegui.page import page

from hub.accounts import Who
from hub.actions import Actions
from hub.alarms import Action, Event
from hub.dashboard import controls
from hub.dashboard.alarms_page import AlarmsView
from hub.dashboard.gate import Visitor
from hub.dashboard.label_card import LabelCard
from hub.dashboard.language import Language
from hub.dashboard.line_page import LineView
from hub.dashboard.silences_card import SilencesCard
from hub.dashboard.tiles import Tiles
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


class Drawn:
    """A part of a page, drawn without a browser; `show` brings it up to date."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.client = Client(page("/drawn"), request=None)
        with self.client:
            self.part = make()

    def show(self, *told: Any) -> None:
        with self.client:
            self.part.show(*told)

    def texts(self) -> list[str]:
        """The words that can be seen."""
        return [each.text for each in self._all() if isinstance(each, ui.label)]

    def touch(self, words: str) -> None:
        """The one button or choice of these words."""
        touched = [each for each in self._all() if isinstance(each, ui.button | ui.item)]
        (found,) = [each for each in touched if words == (each.text if isinstance(each, ui.button) else _inner(each))]
        (listener,) = [each for each in found._event_listeners.values() if each.type in ("click", "clickItem")]
        with self.client:
            listener.handler(GenericEventArguments(sender=found, client=self.client, args={}))

    def write(self, words: str) -> None:
        (field,) = [each for each in self._all() if isinstance(each, ui.input) and "Why" in str(each.props["label"])]
        field.value = words

    def _all(self) -> list[ui.element]:
        return [
            each
            for each in self.client.elements.values()
            if each.visible and all(outer.visible for outer in each.ancestors())
        ]


def _inner(item: ui.item) -> str:
    """The words of a choice in a menu."""
    return next((each.text for each in item if isinstance(each, ui.label)), "")


def operator(hub: Hub, language: Any = "en") -> Visit:
    return Visit(hub, Visitor(Who("Sato", "operator"), None, ""), Language(language))


def forgotten(hub: Hub, clock: SimulatedClock) -> None:
    """A silence of a station's anomalies, begun at an alarm that is over and seen."""
    raised = alarm(START_S - 5, station="press", subject="press")
    keep(hub.store, raised)
    live(hub, "press-3")
    hub.silence("press-3", "press", clock.now_ns() + 3600 * NS, "Abe", "bearing is on order")
    hub.acknowledge("press-3", raised.key, "Abe")
    keep(hub.store, over(raised, START_S))
    clock.sleep(1.0)


@pytest.mark.parametrize("view", [LineView, AlarmsView, SilencesCard])
def test_a_silence_that_outlives_its_alarm_is_seen_and_ended_on_the_page(
    hub: Hub, clock: SimulatedClock, view: Callable[[Visit], Any]
) -> None:
    forgotten(hub, clock)
    drawn, t, line = Drawn(lambda: view(operator(hub))), Language("en"), hub.look()
    assert [event.state for event in line.events] == ["CLEARED_ACK"]
    drawn.show(line)
    assert t("Silenced now") in drawn.texts()
    until = t.moment((START_S + 3600) * NS, line.now_ns)
    assert f"silenced until {until}" in drawn.texts()
    assert "all anomalies of press · by Abe · bearing is on order" in drawn.texts()
    drawn.touch("Hear again")
    assert hub.look().silences == ()
    drawn.show(hub.look())
    assert t("Silenced now") not in drawn.texts()
    assert not any("silenced until" in text for text in drawn.texts())
    assert [(each.who, each.action, each.subject) for each in hub.accounts.audit()] == [
        ("Sato", "silence", "press-3 press")
    ]
    another = alarm(START_S + 3, station="press", subject="press", key="another")
    keep(hub.store, another)
    clock.sleep(5.0)
    assert [event.calls for event in hub.look().events if event.active] == [True]


def test_a_tile_says_what_is_silenced_of_its_station(hub: Hub, clock: SimulatedClock) -> None:
    forgotten(hub, clock)
    for language, what in (("en", "all anomalies of press"), ("ja", "press のすべての異常")):
        drawn, t, line = Drawn(lambda language=language: Tiles(operator(hub, language))), Language(language), hub.look()
        drawn.show(line)
        until = t("silenced until {time}", time=t.moment((START_S + 3600) * NS, line.now_ns))
        assert [text for text in drawn.texts() if until in text] == [f"{what}: {until}"]  # press-4 has none
    clock.sleep(3600)
    drawn.show(hub.look())
    assert not any("通知停止" in text for text in drawn.texts())


def test_a_card_of_one_station_lists_its_own_silences(hub: Hub, clock: SimulatedClock) -> None:
    for device, subject, minutes in (("press-3", "cam0", 60), ("press-4", "", 30), ("press-3", "press-3", 10)):
        hub.silence(device, subject, clock.now_ns() + minutes * 60 * NS, "Abe", "")
    drawn = Drawn(lambda: SilencesCard(operator(hub), "press-3"))
    drawn.show(hub.look())
    assert [text for text in drawn.texts() if "Abe" in text] == [
        "the alarm that press-3 is away · by Abe",  # what ends first
        "all alarms of cam0 (press-3) · by Abe",
    ]
    assert [silence.device for silence in hub.look().silences] == ["press-3", "press-4", "press-3"]


def test_what_is_typed_as_the_reason_stands_in_the_history(hub: Hub, clock: SimulatedClock) -> None:
    raised = alarm(START_S - 5, kind="drift", subject="cam0")
    keep(hub.store, raised)
    card = Drawn(lambda: LabelCard(operator(hub)))

    def act(words: str, why: str) -> None:
        clock.sleep(1.0)
        line = hub.look()
        card.show(line, line.events[0])
        card.write(why)
        card.touch(words)

    act("10 min", "  lens is being cleaned ")
    act("Hear again", "it is clean")
    act("Acknowledge", "seen at the press")
    line = hub.look()
    card.show(line, line.events[0])
    assert "Silences all alarms of cam0 (press-3), new ones too, for:" in card.texts()
    act("10 min", "")  # a reason is of one act
    assert [(each.what, each.why) for each in hub.history("press-3", raised.key)[1:]] == [
        ("silence", "lens is being cleaned"),
        ("unsilence", "it is clean"),
        ("acknowledge", "seen at the press"),
        ("silence", ""),
    ]
    assert {each.silence.until_ns for each in hub.look().events if each.silence} == {clock.now_ns() + 600 * NS}


def test_a_viewer_ends_no_silence(hub: Hub, clock: SimulatedClock) -> None:
    forgotten(hub, clock)
    viewer = replace(operator(hub), visitor=Visitor(Who("Ito", "viewer"), None, ""))
    drawn = Drawn(lambda: SilencesCard(viewer))
    drawn.show(hub.look())
    drawn.touch("Hear again")
    assert len(hub.look().silences) == 1
    assert [(each.who, each.outcome) for each in hub.accounts.audit()] == [("Ito", "refused")]
