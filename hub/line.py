"""The running hub: broker, ingest and store, and one look at them for any number of pages."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from hub import groups, messenger, watch
from hub import store as stores
from hub.absence import Absence
from hub.accounts import Accounts
from hub.alarms import Action, Event
from hub.announcer import Announcer
from hub.broker import Broker
from hub.desk import Desk
from hub.ingest import Ingest
from hub.inhibition import Floor
from hub.metrics import TimedKeeper
from hub.rates import rates
from hub.retention import Retention
from lineside.clock import NS, Clock
from lineside.errors import ConfigError
from lineside.operator import Operator, Outcome
from lineside.pins import Pins
from lineside.plant import PlantConfig

LOOK_NS = NS * 2 // 5
ANSWER_S = 60.0


class Hub:
    """Everything of one line; `start` starts it in order, `stop` stops it in the other."""

    def __init__(self, plant: PlantConfig, base: Path, clock: Clock) -> None:
        self.plant, self.clock = plant, clock
        self.repository = base / plant.repository
        self.pins = Pins(base / plant.secrets)
        self.store = stores.Store(stores.database_url(plant.hub.database, base))
        self.accounts = Accounts(self.store.engine, clock, plant.hub.session_hours)
        self.broker = Broker(plant, base, clock) if plant.broker.managed else None
        self.keeper, shared = TimedKeeper(self.store, clock), self.store.shared
        self.ingest = Ingest(plant.site, plant.connection("hub"), base, self.keeper, clock=clock, shared=shared)
        self.retention = Retention(self.store, plant.hub.keep_days, clock)
        self.desk = Desk(self.store, plant.alarms, clock)
        self.messenger = messenger.Messenger(
            plant, messenger.addresses(plant, base), self.desk.actions, lambda: self.look().groups, clock
        )
        self.absence = Absence(self.store, lambda: self.ingest.presence, plant.alarms.offline_s, clock)
        self.announcer = Announcer(plant, base, self.look)
        self._base = base
        self._lock = threading.Lock()
        self._seen: watch.Line | None = None
        self._floor = Floor()

    def start(self) -> None:
        """Raises PortInUseError, BrokerError or ConfigError; then nothing is left running."""
        if self.plant.hub.login and not self.accounts.users():
            mend = "add one: `lineside hub user add NAME --role engineer`"
            raise ConfigError("hub.login", "is on, and the hub has no user", mend)
        if self.broker is not None:
            self.broker.start()
        self.ingest.start()
        self.retention.start()
        self.messenger.start()
        self.absence.start()
        self.announcer.start()

    def stop(self) -> None:
        """Commit what has come in, then end the children. May be called twice."""
        self.announcer.stop()
        self.absence.stop()
        self.messenger.stop()
        self.retention.stop()
        self.ingest.stop()
        if self.broker is not None:
            self.broker.stop()
        self.store.close()

    def acknowledge(self, device: str, key: str, who: str, why: str = "") -> None:
        """Keep that somebody saw an alarm; the next look shows it. Raises LinesideError for an unknown one."""
        self.desk.acknowledge(device, key, who, why)
        self._look_anew()

    def silence(self, device: str, subject: str, until_ns: int, who: str, why: str = "") -> None:
        """Silence a device's alarms of a key or subject (station, sensor, pair; "": all) until an end.

        Of one subject the last word counts. Raises LinesideError for an end that is over, or more than a week away.
        """
        self.desk.silence(device, subject, until_ns, who, why)
        self._look_anew()

    def unsilence(self, device: str, subject: str, who: str, why: str = "") -> None:
        """End a silence before its time."""
        self.desk.unsilence(device, subject, who, why)
        self._look_anew()

    def alarms(self, since_ns: int) -> list[Event]:
        """Events that had a word at or after `since_ns`, and all that are open, as a look shows them."""
        return self.desk.since(since_ns, self.look().now_ns, self._floor)

    def history(self, device: str, key: str) -> list[Action]:
        """Every change of an alarm with who, when and why, oldest first. Raises LinesideError for an unknown one."""
        return self.desk.history(device, key)

    def ask(self, device: str, op: str, args: dict[str, str]) -> Outcome:
        """Ask a device, as the broker user `operator`, and wait for the end of it.

        Raises BrokerError when the broker cannot be reached or refuses.
        """
        with Operator(self.plant.connection("operator"), self._base, self.plant.site, self.clock) as operator:
            return operator.ask([device], op, args, ANSWER_S)[0]

    def look(self) -> watch.Line:
        """The line as it stands now; looks within 0.4 s share one, however many pages are open."""
        with self._lock:
            now_ns = self.clock.now_ns()
            if self._seen is None or now_ns - self._seen.now_ns > LOOK_NS:
                self._seen = self._look(now_ns)
            return self._seen

    def devices(self) -> list[str]:
        """The devices of the plant file and any other that has spoken."""
        return sorted({*self.plant.devices, *self.ingest.presence})

    def _look(self, now_ns: int) -> watch.Line:
        lasts = {device: self._last(device) for device in self.devices()}
        self._floor = self._known(now_ns, lasts)
        events = self.desk.events(now_ns, self._floor)
        healths = self.store.latest_health(self.devices())
        stations = [
            watch.station(
                now_ns,
                device,
                presence=self.ingest.presence.get(device),
                health=healths.get(device),
                last=lasts[device],
                events=events,
            )
            for device in self.devices()
        ]
        numbers = {**asdict(self.ingest.counts), "waiting": self.ingest.waiting}
        rules, speaking = (
            self.plant.alarms,
            [device for device, word in self._floor.presence.items() if word == "online"],
        )
        return watch.Line(
            now_ns,
            self.ingest.connected,
            watch.worst_first(stations),
            tuple(events),
            numbers,
            tuple(groups.grouped(events, round(rules.group_s * NS), speaking)),
            rates(events, now_ns, rules.operators),
            asdict(self.messenger.counts),
        )

    def _known(self, now_ns: int, lasts: Mapping[str, watch.Arrival | None]) -> Floor:
        """What may inhibit alarms: a station's own word counts while it is live."""
        presence = {device: word.word for device, word in self.ingest.presence.items()}
        states = {d: last.score.state for d, last in lasts.items() if last and now_ns - last.seen_ns <= watch.STALE_NS}
        return Floor(presence, states, self.plant.alarms.maintenance)

    def _look_anew(self) -> None:
        with self._lock:
            self._seen = None

    def _last(self, device: str) -> watch.Arrival | None:
        newest = self.store.arrivals(device, after_ns=0, limit=1)
        return watch.Arrival(*newest[0]) if newest else None
