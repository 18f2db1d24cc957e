"""What the hub makes of alarms: flapping, silences, inhibition, groups, rates, escalation; pure decisions."""

from __future__ import annotations

import socket
from dataclasses import replace
from datetime import datetime
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub import groups, inhibition, rates, silence
from hub.alarms import Action, Event, book, history, urgent_first
from hub.escalation import Terms, calling, due, words
from hub.flapping import join, owed, source_of
from hub.inhibition import Floor
from lineside import config as toml
from lineside.clock import NS
from lineside.errors import ConfigError, LinesideError
from lineside.messages import Alarm
from lineside.plant import AlarmRules, BrokerProcess, HubSettings, PlantConfig

HOUR_NS = 3600 * NS
MINUTE_NS = 60 * NS


def alarm(raised_s: float, *, device: str = "press-3", kind: str = "anomaly", subject: str = "", **more) -> Alarm:
    """An alarm as a device would raise it, two seconds after its onset."""
    station = f"station of {device}"
    subject = subject or station
    onset_ns = round((raised_s - 2) * NS)
    told = dict(
        device=device,
        epoch=1,
        seq=round(raised_s * 10) + 1,
        station=station,
        key=f"{device}/{station}/{kind}/{subject}/{onset_ns}",
        kind=kind,
        state="raised",
        subject=subject,
        top_sensor="mic0",
        top_modality="microphone",
        onset_ns=onset_ns,
        time_ns=round(raised_s * NS),
        p_value=0.001,
        evidence=6.9,
        contributions={},
        versions={},
        limits={},
        text="unlike normal",
    )
    return Alarm(**{**told, **more})


def over(raised: Alarm, cleared_s: float) -> Alarm:
    return msgspec.structs.replace(
        raised, seq=round(cleared_s * 10) + 1, state="cleared", time_ns=round(cleared_s * NS), text="normal again"
    )


def spell(raised_s: float, cleared_s: float, **more) -> list[Alarm]:
    raised = alarm(raised_s, **more)
    return [raised, over(raised, cleared_s)]


def joined(messages: list[Alarm], now_s: float, seen=None, hysteresis_s: float = 60.0) -> list[Event]:
    return urgent_first(join(book(messages, seen or {}), round(hysteresis_s * NS), round(now_s * NS)))


def active(*alarms: Alarm) -> list[Event]:
    return [Event(each, "ACTIVE_UNACK") for each in alarms]


# flapping


def test_what_is_raised_again_soon_is_one_event_that_is_counted() -> None:
    said = [*spell(10, 20), *spell(60, 70), *spell(129, 131)]
    (event,) = joined(said, now_s=1000)
    assert [t // NS for t in event.raises_ns] == [10, 60, 129]
    assert (event.raised, event.cleared_ns) == (said[0], 131 * NS)
    assert event.state == "CLEARED_UNACK"
    assert len(joined(said, now_s=1000, hysteresis_s=39)) == 3
    assert len(joined(said, now_s=1000, hysteresis_s=40)) == 2


def test_what_flaps_is_over_only_when_it_has_been_quiet_for_a_while() -> None:
    said = [*spell(10, 20), *spell(60, 70)]
    assert [joined(said, now)[0].state for now in (70, 129, 130)] == ["ACTIVE_UNACK", "ACTIVE_UNACK", "CLEARED_UNACK"]
    assert joined(spell(10, 20), now_s=21)[0].state == "CLEARED_UNACK"  # what does not flap clears at once
    ahead = [*spell(1010, 1020), *spell(1060, 1070)]  # by a clock an hour ahead nobody can tell
    assert joined(ahead, now_s=100)[0].state == "CLEARED_UNACK"


def test_an_acknowledgement_holds_while_it_flaps_and_is_owed_to_the_store() -> None:
    said = [*spell(10, 20), alarm(60)]
    seen = {("press-3", said[0].key): ("Sato", 15 * NS)}
    (event,) = joined(said, 61, seen)
    assert (event.state, event.acknowledged_by, event.acknowledged_ns) == ("ACTIVE_ACK", "Sato", 15 * NS)
    assert [(each.subject, each.who) for each in owed([event], seen)] == [(said[2].key, "Sato")]
    assert owed([event], {**seen, ("press-3", said[2].key): ("Sato", 15 * NS)}) == []
    assert joined([*said[:2], alarm(1000)], 1001, seen)[0].state == "ACTIVE_UNACK"  # a new event wants a new look


@pytest.mark.parametrize(
    "other", [{"device": "press-4"}, {"kind": "drift"}, {"subject": "cam0"}, {"top_sensor": "cam0"}]
)
def test_other_sources_and_other_sensors_on_top_stay_events_of_their_own(other) -> None:
    assert len(joined([*spell(10, 20), *spell(30, 40, **other)], 1000)) == 2


def test_a_raise_says_that_the_former_one_is_over_whose_clear_never_came() -> None:
    lost, again = alarm(10), alarm(5000)
    assert [(e.state, e.cleared_ns) for e in joined([lost, again], 5001)] == [
        ("ACTIVE_UNACK", 0),
        ("CLEARED_UNACK", 5000 * NS),
    ]
    assert source_of(lost.key) == source_of(again.key) != lost.key


# history


def test_the_history_tells_every_change_with_who_when_and_why() -> None:
    said = spell(10, 40)
    key = said[0].key
    done = [
        Action(15 * NS, "Sato", "acknowledge", "press-3", key, "I go and look"),
        Action(20 * NS, "Abe", "silence", "press-3", said[0].subject, "waiting for a part", 80 * NS),
        Action(20 * NS, "Abe", "silence", "press-3", "", "another day", 1 << 62),
    ]
    late = Action(41 * NS, "Abe", "silence", "press-3", said[0].subject, "after it", 99 * NS)
    early = Action(1 * NS, "Abe", "silence", "press-3", said[0].subject, "before it", 9 * NS)
    told = history(said * 2, {("press-3", key): ("Sato", 15 * NS)}, [*done, late, early])
    assert [(each.time_ns // NS, each.who, each.what) for each in told] == [
        (10, "press-3", "raise"),
        (15, "Sato", "acknowledge"),
        (20, "Abe", "silence"),
        (20, "Abe", "silence"),
        (40, "press-3", "clear"),
    ]
    assert [each.why for each in told][:2] == ["unlike normal", "I go and look"]
    again = alarm(60)  # active once more: what is done now falls on it
    assert late in history([*said, again], {}, [late])
    assert late not in history(said, {}, [late])
    old = history(said, {("press-3", key): ("Mori", 12 * NS)}, [])  # acknowledged before there was a book of actions
    assert [each.who for each in old] == ["press-3", "Mori", "press-3"]


# silences


def silenced_by(raised: Alarm, actions: list[Action], now_s: float) -> str:
    (event,) = silence.silenced(active(raised), actions, round(now_s * NS))
    assert event.active
    assert event.calls == (event.silence is None)
    return event.silence.who if event.silence else ""


def test_a_silence_is_of_a_subject_and_ends_by_itself() -> None:
    raised = alarm(10, kind="drift", subject="cam0")
    for subject in ("cam0", "", raised.key):
        action = silence.silence(5 * NS, "press-3", subject, 100 * NS, "Sato", "lens is being cleaned")
        assert silenced_by(raised, [action], 99) == "Sato"
        assert silenced_by(raised, [action], 100) == ""
    for device, subject in (("press-4", "cam0"), ("press-3", "mic0"), ("press-3", "cam")):
        action = silence.silence(5 * NS, device, subject, 100 * NS, "Sato", "")
        assert silenced_by(raised, [action], 50) == ""


def test_of_one_subject_the_last_word_counts_of_several_the_longest() -> None:
    raised = alarm(10, subject="cam0")
    first = Action(1 * NS, "Sato", "silence", "press-3", "cam0", "", 100 * NS)
    shorter = Action(2 * NS, "Abe", "silence", "press-3", "cam0", "", 20 * NS)
    whole = Action(3 * NS, "Mori", "silence", "press-3", "", "", 50 * NS)
    again = Action(4 * NS, "Abe", "unsilence", "press-3", "cam0")
    assert silenced_by(raised, [shorter, first], 30) == ""
    assert silenced_by(raised, [first, whole], 30) == "Sato"
    assert silenced_by(raised, [first, again], 30) == ""
    assert silenced_by(raised, [first, again, whole], 30) == "Mori"


@pytest.mark.parametrize("until_ns", [0, 5 * NS, silence.MOST_NS + 5 * NS + 1])
def test_a_silence_without_a_near_end_is_refused(until_ns: int) -> None:
    with pytest.raises(LinesideError, match="seven days"):
        silence.silence(5 * NS, "press-3", "", until_ns, "Sato", "")


# inhibition


@pytest.mark.parametrize(
    ("floor", "reasons"),
    [
        (Floor(), ("", "", "")),
        (Floor({"press-3": "online"}), ("", "", "")),
        (Floor({"press-3": "offline"}), ("press-3 is offline", "press-3 is offline", "")),
        (Floor({"press-3": "stopped"}), ("press-3 is stopped", "press-3 is stopped", "")),
        (Floor({"press-4": "offline"}), ("", "", "")),
        (Floor({}, {"press-3": "cleaning"}, ("cleaning",)), ("station of press-3 is in cleaning",) * 2 + ("",)),
        (Floor({}, {"press-3": "running"}, ("cleaning",)), ("", "", "")),
    ],
)
def test_what_explains_an_alarm_inhibits_it(floor: Floor, reasons: tuple[str, ...]) -> None:
    events = active(alarm(10), alarm(11, kind="drift", subject="cam0"), alarm(12, kind="sensor", subject="mic0"))
    found = inhibition.inhibited(events, floor)
    assert tuple(event.inhibited for event in found) == reasons
    assert [event.calls for event in found] == [not reason for reason in reasons]
    assert all(event.active for event in found)


def test_a_sensor_alarm_inhibits_drift_of_the_same_sensor() -> None:
    broken = alarm(10, kind="sensor", subject="cam0")
    drifts = [alarm(11, kind="drift", subject=name) for name in ("cam0", "mic0+cam0", "mic0")]
    others = [alarm(11, kind="drift", subject="cam0", device="press-4"), alarm(12)]
    found = inhibition.inhibited(active(broken, *drifts, *others), Floor())
    assert [event.inhibited for event in found] == ["", *["cam0 has a sensor alarm"] * 2, "", "", ""]
    well = Event(broken, "CLEARED_UNACK", cleared_ns=12 * NS)
    assert [event.inhibited for event in inhibition.inhibited([well, *active(*drifts)], Floor())] == [""] * 4
    closed = Event(alarm(3), "CLEARED_ACK", cleared_ns=5 * NS)
    assert inhibition.inhibited([closed], Floor({"press-3": "offline"}))[0].inhibited == ""


# groups


def names(found: list[groups.Group]) -> list[list[str]]:
    return [[f"{e.raised.device} {e.raised.kind}" for e in group.events] for group in found]


def test_onsets_within_some_seconds_on_one_station_are_one_group() -> None:
    said = [alarm(100), alarm(108, kind="drift", subject="cam0"), alarm(115, kind="sensor", subject="mic0")]
    found = groups.grouped(active(*said, alarm(116, subject="x")), 15 * NS, ["press-3", "press-4"])
    assert names(found) == [["press-3 anomaly"], ["press-3 anomaly", "press-3 drift", "press-3 sensor"]]
    assert found[1].members == {("press-3", each.key) for each in said}
    assert found[1].cause == ""
    assert found == groups.grouped(reversed(active(alarm(116, subject="x"), *said)), 15 * NS, ["press-3", "press-4"])


def test_a_flood_does_not_chain_into_one_group() -> None:
    found = groups.grouped(active(*(alarm(10 * n, subject=f"s{n}") for n in range(1, 10))), 15 * NS, [])
    assert max(len(group.events) for group in found) == 2


LINE = ["press-3", "press-4", "press-5"]


@pytest.mark.parametrize(
    ("modalities", "cause"),
    [
        (["camera"] * 3, "the light"),
        (["microphone"] * 3, "noise in the hall"),
        (["camera", "microphone", "camera"], "power"),
        (["series"] * 3, "power"),
    ],
)
def test_every_station_at_once_is_one_group_with_a_common_cause(modalities: list[str], cause: str) -> None:
    said = [alarm(100 + 5 * n, device=d, top_modality=m) for n, (d, m) in enumerate(zip(LINE, modalities, strict=True))]
    (found,) = groups.grouped(active(*said), 15 * NS, LINE)
    assert cause in found.cause
    assert found.stations == tuple(f"station of {device}" for device in LINE)
    assert len(groups.grouped(active(*said[:2]), 15 * NS, LINE)) == 2  # not every one
    assert len(groups.grouped(active(*said[:2]), 15 * NS, LINE[:2])) == 1  # the third does not speak
    assert len(groups.grouped(active(said[0]), 15 * NS, LINE[:1])) == 1
    assert groups.grouped(active(said[0]), 15 * NS, LINE[:1])[0].cause == ""  # one station has nothing in common
    assert len(groups.grouped(active(*said), 9 * NS, LINE)) == 3


@given(st.lists(st.tuples(st.sampled_from(LINE), st.integers(3, 300), st.integers(1, 90)), max_size=25, unique=True))
def test_nothing_is_lost_or_told_twice_whatever_comes(spells: list[tuple[str, int, int]]) -> None:
    said = [m for device, at, lasts in spells for m in spell(at, at + lasts, device=device, subject="s")]
    events = joined(said, now_s=1000)
    keys = [(event.raised.device, key) for event in events for key in event.keys]
    assert sorted(keys) == sorted({(m.device, m.key) for m in said})
    found = groups.grouped(events, 15 * NS, LINE)
    members = [member for group in found for member in group.members]
    assert sorted(members) == sorted(keys)
    assert all(group.events[-1].raised.onset_ns - group.onset_ns <= 30 * NS for group in found)


# rates


def test_rates_are_judged_by_the_norms_for_each_operator() -> None:
    def measured(number: int, operators: int = 1) -> rates.Rates:
        return rates.rates(active(*(alarm(4000 + 300 * n) for n in range(number))), 7300 * NS, operators)

    assert [measured(n).word for n in (0, 6, 7, 12)] == ["acceptable", "acceptable", "manageable", "manageable"]
    assert rates.rates(active(*(alarm(4000 + 200 * n) for n in range(13))), 7300 * NS).word == "too many"
    assert (measured(12, 2).per_operator, measured(12, 2).word) == (6.0, "acceptable")
    assert (measured(4).norm, round(measured(4).mean, 2)) == (6.0, 0.17)
    assert measured(4).stations == {"station of press-3": 4}
    assert rates.rates(active(*(alarm(4000 + 200 * n) for n in range(13))), 7300 * NS).norm == 12.0


def test_rates_count_an_event_once_and_nothing_raised_into_a_silence() -> None:
    flapping = joined([m for n in range(5) for m in spell(1000 + 30 * n, 1010 + 30 * n)], 2000)
    shelved = Action(1100 * NS, "Sato", "silence", "press-4", "", "", 1500 * NS)
    events = silence.silenced([*flapping, *active(alarm(1200, device="press-4"))], [shelved], 2000 * NS)
    assert rates.rates(events, 2000 * NS).last_hour == 1
    assert rates.rates(flapping, 2000 * NS + HOUR_NS).last_hour == 0


def test_chattering_and_standing_alarms_are_named() -> None:
    chattering = joined([m for n in range(3) for m in spell(1000 + 25 * n, 1005 + 25 * n)], 2000)
    calm = joined([m for n in range(3) for m in spell(5000 + 35 * n, 5005 + 35 * n)], 6000)
    (standing,) = active(alarm(2, device="press-9"))
    seen = replace(standing, raised=alarm(3, device="press-8"), state="CLEARED_UNACK")
    found = rates.rates([*chattering, *calm, standing, seen], 25 * HOUR_NS)
    assert found.chattering == (("press-3", chattering[0].raised.key),)
    assert found.standing == (("press-9", standing.raised.key),)
    assert found.warnings == (("{n} chattering", 1), ("{n} standing for more than a day", 1))


def test_a_flood_begins_above_ten_in_ten_minutes_and_ends_below_five() -> None:
    minute = MINUTE_NS
    eleven = [n * minute // 2 for n in range(11)]
    assert rates.floods(eleven[:10], 60 * minute) == ()
    assert rates.floods(eleven, 6 * minute) == ((5 * minute, 0),)
    # The seventh of them is ten minutes old 13 minutes after the first: four are left.
    assert rates.floods(eleven, 60 * minute) == ((5 * minute, 13 * minute),)
    assert rates.floods([n * minute for n in range(60)], 90 * minute) == ()  # ten in ten minutes, never more
    events = active(*(alarm(1000 + t / NS, subject=str(t)) for t in eleven))
    assert rates.rates(events, 1301 * NS).flooded
    assert rates.rates(events, 9000 * NS).warnings == (("{n} floods in a day", 1),)


# escalation

TERMS = Terms(("shift", "leader", "plant"), 15 * NS, 15 * MINUTE_NS, per_hour=3)


def sent(*alarms: Alarm, who: str = "shift", at_s: float = 30, what: str = "notify") -> list[Action]:
    return [Action(round(at_s * NS), who, what, each.device, each.key) for each in alarms]


def asked(said: list[Event], told: list[Action], now_s: float, **more) -> list[str]:
    notices, _ = due(groups.grouped(said, 15 * NS, LINE), told, round(now_s * NS), TERMS, **more)
    return [notice.target for notice in notices]


def test_the_first_target_is_told_once_a_group_has_gathered() -> None:
    said = active(alarm(10))
    assert [asked(said, [], now) for now in (10, 24, 25)] == [[], [], ["shift"]]
    assert asked(said, sent(said[0].raised), 31) == []
    assert asked(active(alarm(5000)), [], 31) == ["shift"]  # of a device whose clock is ahead


def test_an_alarm_that_nobody_acknowledges_goes_to_the_next_target() -> None:
    (event,) = said = active(alarm(10))
    shift = sent(event.raised)
    assert asked(said, shift, 30 + 15 * 60 - 1) == []
    assert asked(said, shift, 30 + 15 * 60) == ["leader"]
    leader = [*shift, *sent(event.raised, who="leader", at_s=930)]
    assert asked(said, leader, 930 + 15 * 60) == ["plant"]
    assert asked(said, [*leader, *sent(event.raised, who="plant", at_s=1830)], 10**6) == []
    assert asked(said, sent(event.raised, what="notify_failed"), 31) == [
        "leader"
    ]  # at once, if the first cannot be told
    # A message that waited in a device's outbox for a day does not skip a target.
    assert asked(said, [], 86_400) == ["shift"]


@pytest.mark.parametrize(
    "answer",
    [
        {"state": "ACTIVE_ACK", "acknowledged_by": "Sato"},
        {"state": "CLEARED_UNACK"},
        {"inhibited": "press-3 is offline"},
        {"silence": Action(1, "Sato", "silence", "press-3", "")},
    ],
)
def test_what_calls_nobody_is_told_to_nobody(answer) -> None:
    (event,) = active(alarm(10))
    assert asked([replace(event, **answer)], [], 100) == []
    assert asked([event], [], 100) == ["shift"]


def test_one_message_a_group() -> None:
    first, second = alarm(10), alarm(20, kind="sensor", subject="mic0")
    assert asked(active(first, second), [], 100) == ["shift"]
    assert asked(active(first, second), sent(first), 100) == []  # who came later is told of no more
    line = [alarm(10 + n, device=device) for n, device in enumerate(LINE)]
    assert asked(active(*line), [], 100) == ["shift"]
    seen = [replace(event, state="ACTIVE_ACK", acknowledged_by="Sato") for event in active(first)]
    assert asked([*seen, *active(second)], [], 100) == []  # somebody is at it


def test_a_target_gets_so_many_an_hour_and_none_in_quiet_hours() -> None:
    said = [alarm(100 * n, subject=f"s{n}") for n in range(1, 6)]
    found = groups.grouped(active(*said), 15 * NS, [])
    notices, held = due(found, [], 1000 * NS, TERMS)
    assert (len(notices), held) == (3, 2)
    before = [*sent(said[0], at_s=900), *sent(said[1], at_s=950)]
    assert (len(due(found, before, 1000 * NS, TERMS)[0]), due(found, before, 1000 * NS, TERMS)[1]) == (1, 2)
    assert due(found, [], 1000 * NS, TERMS, quiet=True) == ([], 0)
    # An hour later both have been told long enough ago: they go to the leader, the rest to the shift.
    later = [notice.target for notice in due(found, before, 4600 * NS, TERMS)[0]]
    assert sorted(later) == ["leader"] * 2 + ["shift"] * 3


def test_a_message_says_where_what_and_why() -> None:
    line = [alarm(10 + n, device=device, cause="process") for n, device in enumerate(LINE)]
    (group,) = groups.grouped(active(*line), 15 * NS, LINE)
    (notice,), _ = due([group], [], 100 * NS, TERMS)
    assert calling(group) == notice.events
    title, body = words(notice, "line1", "http://plant-1:8080")
    assert title == "line1 · station of press-3, station of press-4, station of press-5: anomaly, process at fault"
    assert body.splitlines() == [
        "every station at once: look for a common cause (noise in the hall)",
        *(
            line
            for n, event in enumerate(notice.events)
            for line in (
                f"{datetime.fromtimestamp(10 + n).astimezone().isoformat()} station of {LINE[n]}: unlike normal",
                f"http://plant-1:8080/alarm/{LINE[n]}/{quote(event.raised.key)}",
            )
        ),
    ]


@pytest.mark.parametrize(
    ("kind", "text", "cause", "said", "weight"),
    [
        ("anomaly", "press-3 is unlike normal", "process", "press-3 is unlike normal", "failure"),
        ("anomaly", "press-3 is unlike normal", "sensor", "press-3 is unlike normal", "warning"),
        ("sensor", "mic0 (microphone): no sound", "sensor", "press-3: mic0 (microphone): no sound", "warning"),
        ("drift", "press-3: drifts", "", "press-3: drifts", "warning"),
        ("device", "press-30 has been offline", "", "press-3: press-30 has been offline", "failure"),
    ],
)
def test_a_message_names_a_station_once_and_says_how_bad_it_is(
    kind: str, text: str, cause: str, said: str, weight: str
) -> None:
    (group,) = groups.grouped(active(alarm(10, kind=kind, text=text, cause=cause, station="press-3")), 15 * NS, LINE)
    (notice,), _ = due([group], [], 100 * NS, TERMS)
    assert words(notice, "line1", "http://plant-1")[1].splitlines()[0].split(" ", 1)[1] == said
    assert notice.weight == weight


@pytest.mark.parametrize(
    ("hub", "broker", "url"),
    [
        ({}, {}, "https://192.168.1.5:8080"),
        ({"host": "0.0.0.0", "names": ("hub.plant.example",)}, {"host": "plant-1"}, "https://hub.plant.example:8080"),
        ({"host": "0.0.0.0"}, {"host": "plant-1"}, "https://plant-1:8080"),
        ({"host": "::"}, {"host": "fd00::5"}, "https://[fd00::5]:8080"),
        ({"host": "0.0.0.0"}, {"host": "elsewhere", "managed": False}, f"https://{socket.gethostname()}:8080"),
        ({"host": "0.0.0.0"}, {"host": "127.0.0.1"}, f"https://{socket.gethostname()}:8080"),
    ],
)
def test_a_link_names_a_machine_that_can_be_reached(hub: dict[str, Any], broker: dict[str, Any], url: str) -> None:
    settings = HubSettings(**{"host": "192.168.1.5", "login": True, "cert_file": "c", "key_file": "k", **hub})
    assert PlantConfig(site="line1", devices=[], hub=settings, broker=BrokerProcess(**broker)).url == url


# the plant file


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hysteresis = 5", "did you mean 'hysteresis_s'"),
        ("hysteresis_s = -1", "hysteresis_s is 0 to 3600"),
        ("group_s = 1e9", "group_s 0 to 600"),
        ("escalate_min = 0", "escalate_min is above 0"),
        ("escalate_min = inf", "at most 1440"),
        ("group_s = nan", "group_s 0 to 600"),
        ("operators = 0", "operators are at least 1"),
        ('notify = "mailto://user:secret@host"', "no path and no URL"),
        ('notify = "../notify.toml"', "no path and no URL"),
        ('quiet_hours = "22:00-06:00"', "nothing to keep quiet"),
        ('notify = "n.toml"\nquiet_hours = "22-6"', "quiet_hours are as"),
        ('notify = "n.toml"\nquiet_hours = "25:00-06:00"', "quiet_hours are as"),
        ('maintenance = "cleaning"', "alarms.maintenance"),
    ],
)
def test_a_plant_file_that_cannot_be_meant_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        toml.loads(f'site = "line1"\ndevices = ["press-3"]\n[alarms]\n{text}\n', PlantConfig)


def test_quiet_hours_may_go_over_midnight() -> None:
    night = AlarmRules(notify="n.toml", quiet_hours="22:00-06:00")
    assert [night.is_quiet(60 * h) for h in (21, 22, 0, 5, 6)] == [False, True, True, True, False]
    noon = AlarmRules(notify="n.toml", quiet_hours="12:00-13:00")
    assert [noon.is_quiet(60 * h) for h in (11, 12, 13)] == [False, True, False]
