"""What an operator should see now: every station's word, its last score, its alarms. Stale data is never live."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hub.alarms import Action, Event
from hub.groups import Group
from hub.ingest import Presence
from hub.rates import Rates
from lineside.clock import NS
from lineside.messages import Health, Score

STALE_NS = 5 * NS
HEALTH_STALE_NS = 20 * NS


@dataclass(frozen=True)
class Word:
    """A station's state for people: told by word and icon, so that colour is never alone."""

    text: str
    icon: str
    tone: str


# Worst first: the order of the tiles on the page.
WORDS: dict[str, Word] = {
    "alarm": Word("ALARM", "notification_important", "bad"),
    "sensor": Word("SENSOR", "sensors_off", "warn"),
    "offline": Word("OFFLINE", "cloud_off", "off"),
    "stale": Word("NO DATA", "hourglass_disabled", "off"),
    "waiting": Word("WAITING", "hourglass_top", "busy"),
    "learning": Word("LEARNING", "school", "busy"),
    "check": Word("CHECK", "visibility", "warn"),
    "silenced": Word("SILENCED", "notifications_paused", "off"),
    "normal": Word("NORMAL", "check_circle", "good"),
}
SEVERITY = tuple(WORDS)
AGENT_STATES = {"starting": "waiting", "waiting for encoders": "waiting", "commissioning": "learning"}


@dataclass(frozen=True)
class Arrival:
    """A score and the hub's time of its arrival."""

    received_ns: int
    score: Score

    @property
    def seen_ns(self) -> int:
        """The older of the device's and the hub's time: a device's clock that runs ahead makes nothing live."""
        return min(self.received_ns, self.score.end_ns)


@dataclass(frozen=True)
class Station:
    """One station of one device as it stands at one moment."""

    device: str
    name: str
    word: str
    presence: str
    live: bool
    last: Arrival | None
    health: Health | None
    health_live: bool
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Line:
    """The whole page at one moment, worst station first; `ingest` are the hub's own numbers, `blamed` says by device
    what of them it is the cause of (hub.ingest.Blamed).

    `groups` hold the same events by what they tell of, `rates` say how many alarms there are,
    `notices` how many messages were sent (hub.messenger.Counts), `store` why nothing can be stored now (hub.trouble),
    `silences` what holds now, whether an alarm is under it or not.
    """

    now_ns: int
    broker: bool
    stations: tuple[Station, ...]
    events: tuple[Event, ...]
    ingest: dict[str, int] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    rates: Rates | None = None
    notices: dict[str, int] = field(default_factory=dict)
    store: str = ""
    silences: tuple[Action, ...] = ()
    blamed: dict[str, dict[str, int]] = field(default_factory=dict)

    def station(self, device: str) -> Station | None:
        """The tile of a device."""
        return next((station for station in self.stations if station.device == device), None)


def station(
    now_ns: int,
    device: str,
    *,
    presence: Presence | None,
    health: Health | None,
    last: Arrival | None,
    events: Sequence[Event],
) -> Station:
    """Put together what is known of one device."""
    said = presence.word if presence else "unknown"
    live = said == "online" and last is not None and now_ns - last.seen_ns <= STALE_NS
    own = tuple(event for event in events if event.raised.device == device)
    name = last.score.station if last else health.station if health else ""
    health_live = said == "online" and health is not None and now_ns - health.time_ns <= HEALTH_STALE_NS
    state = health.state if health is not None and health_live else ""
    word = _word(said, state, live, own)
    return Station(device, name, word, said, live, last, health, health_live, own)


def worst_first(stations: Iterable[Station]) -> tuple[Station, ...]:
    """Stations by severity, then by device."""
    return tuple(sorted(stations, key=lambda each: (SEVERITY.index(each.word), each.device)))


def _word(presence: str, state: str, live: bool, events: Sequence[Event]) -> str:
    """A station that does not speak is not judged by what it said before: its alarms stay in the list below."""
    if presence != "online":
        return "offline"
    if not live:
        return AGENT_STATES.get(state, "stale")
    calling = {event.raised.kind for event in events if event.calls}
    if calling:
        return "alarm" if "anomaly" in calling else "sensor"
    if any(event.state == "CLEARED_UNACK" for event in events):
        return "check"
    return "silenced" if any(event.active for event in events) else "normal"
