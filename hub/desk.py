"""The desk where alarms come in and people act on them: the store's messages and actions through the pure rules."""

from __future__ import annotations

from dataclasses import dataclass, field

import sqlalchemy as sa

from hub import alarms, flapping, inhibition
from hub import silence as silences
from hub.actions import Actions
from hub.alarms import Acknowledgements, Action, Event
from hub.inhibition import Floor
from hub.labels import Labels, Said, Word
from hub.store import Store
from hub.tables import ALARMS
from lineside import wire
from lineside.clock import NS, Clock
from lineside.errors import LinesideError
from lineside.messages import Alarm
from lineside.plant import AlarmRules

HISTORY_NS = 24 * 3600 * NS
BOOK_NS = 60 * NS


@dataclass(frozen=True)
class _Read:
    """What was read of the store at one time; `versions` tell whether it is still all."""

    book: list[Event] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    versions: tuple[int, int] = (-1, -1)
    time_ns: int = 0


class Desk:
    """Every action is a row with who, when and why. Reading is for one thread at a time, acting for any."""

    def __init__(self, store: Store, rules: AlarmRules, clock: Clock) -> None:
        self.actions, self.labels = Actions(store.engine), Labels(store.engine)
        self._store, self._clock = store, clock
        self._hysteresis_ns = round(rules.hysteresis_s * NS)
        self._read = _Read()

    def events(self, now_ns: int, floor: Floor) -> list[Event]:
        """The last day's events and all that are open, most urgent first."""
        versions = (self._store.alarm_version, self.actions.version)
        if versions != self._read.versions or now_ns - self._read.time_ns > BOOK_NS:
            since_ns = now_ns - HISTORY_NS
            book, seen = self._book(since_ns)
            self._read = _Read(book, self.actions.since(since_ns), versions, now_ns)
            self._settle(book, seen, now_ns)
        return self._judged(self._read.book, self._read.actions, now_ns, floor)

    def silences(self, now_ns: int) -> list[Action]:
        """The silences that hold now, by what `events` has read; also those that no event is under."""
        return silences.running(self._read.actions, now_ns)

    def since(self, since_ns: int, now_ns: int, floor: Floor) -> list[Event]:
        """As `events`, of those that had a word at or after `since_ns`."""
        return self._judged(self._book(since_ns)[0], self.actions.since(now_ns - HISTORY_NS), now_ns, floor)

    def acknowledge(self, device: str, key: str, who: str, why: str) -> None:
        """Somebody saw an alarm: all raises of the event that it belongs to."""
        now_ns = self._clock.now_ns()
        keys, _ = self._event_of(device, key)
        self.actions.add([Action(now_ns, who, "acknowledge", device, each, why) for each in keys])
        for each in keys:
            self._store.acknowledge(device, each, who, now_ns)

    def silence(self, device: str, subject: str, until_ns: int, who: str, why: str) -> None:
        """See hub.silence; of one subject the last word counts."""
        self.actions.add([silences.silence(self._clock.now_ns(), device, subject, until_ns, who, why)])

    def unsilence(self, device: str, subject: str, who: str, why: str) -> None:
        """End a silence before its time."""
        self.actions.add([Action(self._clock.now_ns(), who, "unsilence", device, subject, why)])

    def label(self, device: str, key: str, word: Word, kind: str, who: str, why: str) -> list[Alarm]:
        """Somebody said what an alarm was: of all raises of its event. Gives the alarms that were raised.

        Raises LinesideError for an unknown alarm, or what is no label.
        """
        now_ns = self._clock.now_ns()
        keys, messages = self._event_of(device, key)
        self.labels.add([Said(now_ns, who, device, each, word, kind, why) for each in keys])
        told = ": ".join(part for part in (f"{word} ({kind})" if kind else word, why) if part)
        self.actions.add([Action(now_ns, who, "label", device, each, told) for each in keys])
        return [message for message in messages if message.state == "raised"]

    def event(self, device: str, key: str) -> Event:
        """The event that a key belongs to, however old, without what silences or inhibits it now.

        Raises LinesideError for an unknown one.
        """
        _, messages = self._event_of(device, key)
        joined = flapping.join(
            alarms.book(messages, self._store.acknowledgements()), self._hysteresis_ns, self._clock.now_ns()
        )
        return next(event for event in joined if key in event.keys)

    def history(self, device: str, key: str) -> list[Action]:
        """Every change of the event that a key belongs to, oldest first."""
        keys, messages = self._event_of(device, key)
        done = self.actions.of(device, {"", *keys, *(message.subject for message in messages)})
        return alarms.history(messages, self._store.acknowledgements(), done)

    def _settle(self, book: list[Event], seen: Acknowledgements, now_ns: int) -> None:
        """Acknowledge in the store what an acknowledgement already holds for: a flapping event's later raises."""
        for each in flapping.owed(flapping.join(book, self._hysteresis_ns, now_ns), seen):
            self._store.acknowledge(each.device, each.subject, each.who, each.time_ns)

    def _event_of(self, device: str, key: str) -> tuple[tuple[str, ...], list[Alarm]]:
        """The keys of the event that a key belongs to, and their messages. Raises LinesideError for an unknown one."""
        c, head = ALARMS.c, flapping.source_of(key)
        query = sa.select(c.body).where(
            c.device == device, sa.or_(c.key == key, c.key.startswith(head, autoescape=True))
        )
        with self._store.engine.connect() as connection:
            said: list[Alarm] = [wire.decode("alarm", row.body) for row in connection.execute(query)]
        joined = flapping.join(alarms.book(said, {}), self._hysteresis_ns, self._clock.now_ns())
        keys = next((event.keys for event in joined if key in event.keys), None)
        if keys is None:
            raise LinesideError(f"alarm {key!r}", f"{device} has raised none of this key", "look at /api/alarms")
        return keys, [message for message in said if message.key in keys]

    def _book(self, since_ns: int) -> tuple[list[Event], Acknowledgements]:
        seen = self._store.acknowledgements(since_ns)
        return alarms.book(self._store.alarms(since_ns), seen), seen

    def _judged(self, book: list[Event], actions: list[Action], now_ns: int, floor: Floor) -> list[Event]:
        joined = flapping.join(book, self._hysteresis_ns, now_ns)
        heard = silences.silenced(joined, actions, now_ns)
        return alarms.urgent_first(inhibition.inhibited(heard, floor))
