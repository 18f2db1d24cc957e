"""The alarm book and the words on the tiles: pure decisions."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from hub import watch
from hub.alarms import Event, book
from hub.ingest import Presence
from lineside.clock import NS
from lineside.messages import Alarm, Health, Score

RAISED = Alarm(
    device="press-3",
    epoch=1,
    seq=10,
    station="press",
    key="k1",
    kind="anomaly",
    state="raised",
    subject="press",
    top_sensor="mic0",
    top_modality="microphone",
    onset_ns=9 * NS,
    time_ns=10 * NS,
    p_value=0.001,
    evidence=6.9,
    contributions={"cam0": 1.0, "mic0": 5.9},
    versions={"camera": "v1"},
    limits={"p_limit": 0.01},
    text="press is unlike normal",
    pictures={"cam0": b"jpeg"},
)
CLEARED = msgspec.structs.replace(RAISED, seq=20, state="cleared", time_ns=20 * NS, pictures={}, text="well again")
SEEN = {("press-3", "k1"): ("operator", 15 * NS)}


@pytest.mark.parametrize(
    ("messages", "seen", "state"),
    [
        ([RAISED], {}, "ACTIVE_UNACK"),
        ([RAISED], SEEN, "ACTIVE_ACK"),
        ([RAISED, CLEARED], {}, "CLEARED_UNACK"),
        ([RAISED, CLEARED], SEEN, "CLEARED_ACK"),
    ],
)
def test_four_states_whatever_the_order_and_however_often(messages, seen, state) -> None:
    for order in itertools.permutations(messages * 2):
        (event,) = book(order, seen)
        assert event.state == state
        assert event.raised == RAISED  # what raised it stays its evidence
        assert event.cleared_ns == (20 * NS if "CLEARED" in state else 0)
        assert event.acknowledged_by == ("operator" if seen else "")


def test_one_event_a_key_and_device_most_urgent_first() -> None:
    later = msgspec.structs.replace(RAISED, key="k2", seq=30, time_ns=30 * NS)
    other = msgspec.structs.replace(RAISED, device="press-4", time_ns=40 * NS)
    events = book([RAISED, later, CLEARED, other, RAISED], {("press-4", "k1"): ("operator", 0)})
    assert [(e.raised.device, e.raised.key) for e in events] == [
        ("press-3", "k2"),
        ("press-4", "k1"),
        ("press-3", "k1"),
    ]
    assert [e.active for e in events] == [True, True, False]


def test_a_clear_whose_raise_was_lost_is_still_an_event() -> None:
    (event,) = book([CLEARED], {})
    assert (event.state, event.raised.text) == ("CLEARED_UNACK", "well again")


NOW_NS = 1000 * NS


def health(state: str = "watching", time_ns: int = NOW_NS) -> Health:
    return Health(
        device="press-3",
        station="press",
        agent="0.1.0",
        time_ns=time_ns,
        uptime_s=1.0,
        state=state,
        sensors={},
        encoders={},
        windows=0,
        moments=0,
        scores=0,
        outbox_messages=0,
        outbox_bytes=0,
        dropped_messages=0,
        problems=[],
    )


def arrival(end_ns: int, received_ns: int | None = None) -> watch.Arrival:
    score = Score(
        device="press-3",
        station="press",
        start_ns=end_ns - NS,
        end_ns=end_ns,
        evidence=1.0,
        p_value=0.4,
        limit=0.01,
        contributions={},
        without={},
        agreements={},
        modalities={},
        absent={},
        versions={},
        skew_ms=0.0,
    )
    return watch.Arrival(end_ns if received_ns is None else received_ns, score)


def look(presence: str = "online", said: Health | None = None, last: watch.Arrival | None = None, events=()):
    word = Presence(presence, 0)
    return watch.station(NOW_NS, "press-3", presence=word, health=said, last=last, events=events)


ACTIVE = Event(RAISED, "ACTIVE_ACK")
SENSOR = Event(msgspec.structs.replace(RAISED, kind="sensor"), "ACTIVE_UNACK")
FRESH = arrival(NOW_NS - NS)


@pytest.mark.parametrize(
    ("station", "word", "live"),
    [
        (look(last=FRESH), "normal", True),
        (look(last=FRESH, events=(ACTIVE, SENSOR)), "alarm", True),
        (look(last=FRESH, events=(SENSOR,)), "sensor", True),
        (look(last=FRESH, events=(Event(RAISED, "CLEARED_UNACK"),)), "check", True),
        (look(last=FRESH, events=(Event(RAISED, "CLEARED_ACK"),)), "normal", True),
        (look("offline", last=FRESH, events=(ACTIVE,)), "offline", False),
        (look("stopped", last=FRESH), "offline", False),
        (look(said=health(), last=arrival(NOW_NS - 6 * NS)), "stale", False),
        (look(said=health("commissioning")), "learning", False),
        (look(said=health("waiting for encoders")), "waiting", False),
        (look(said=health("commissioning", NOW_NS - 60 * NS)), "stale", False),
        # A device whose clock runs an hour ahead fell silent ten seconds ago.
        (look(last=arrival(NOW_NS + 3600 * NS, received_ns=NOW_NS - 10 * NS)), "stale", False),
    ],
)
def test_a_station_says_its_worst_true_word(station: watch.Station, word: str, live: bool) -> None:
    assert (station.word, station.live) == (word, live)


def test_worst_station_first() -> None:
    stations = [look(last=FRESH), look("offline"), look(last=FRESH, events=(ACTIVE,)), look(said=health())]
    assert [each.word for each in watch.worst_first(stations)] == ["alarm", "offline", "stale", "normal"]
