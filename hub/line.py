"""The running hub: broker, ingest and store, and one look at them for any number of pages."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from hub import groups, messenger, releases, watch
from hub import store as stores
from hub.absence import Absence
from hub.accounts import Accounts
from hub.alarms import Action, Event
from hub.announcer import Announcer
from hub.broker import Broker
from hub.desk import Desk
from hub.evidence import fetch
from hub.evidence.room import Evidence
from hub.expiries import Expiry, expiries
from hub.ingest import Ingest
from hub.inhibition import Floor
from hub.labelled import LabelledSet
from hub.labels import Word
from hub.metrics import TimedKeeper
from hub.overview import Overview
from hub.rates import rates
from hub.replays import Replays
from hub.retention import Retention
from lineside.clock import NS, Clock
from lineside.errors import ConfigError, LinesideError
from lineside.operator import Operator, Outcome
from lineside.pins import Pins
from lineside.plant import PlantConfig
from lineside.rollout_records import Records

LOOK_NS = NS * 2 // 5
ANSWER_S = 60.0


class Hub:
    """Everything of one line; `start` starts it in order, `stop` stops it in the other."""

    def __init__(self, plant: PlantConfig, base: Path, clock: Clock, config: str = "plant.toml") -> None:
        """`config` is the plant file as the commands name it that pages show: they are run where the keys lie."""
        self.plant, self.clock, self.config = plant, clock, config
        self.repository = base / plant.repository
        self.pins = Pins(base / plant.secrets)
        self.store = stores.Store(stores.database_url(plant.hub.database, base))
        self.accounts = Accounts(self.store.engine, clock, plant.hub.session_hours)
        self.broker = Broker(plant, base, clock) if plant.broker.managed else None
        self.keeper, shared = TimedKeeper(self.store, clock), self.store.shared
        self.ingest = Ingest(plant.site, plant.connection("hub"), base, self.keeper, clock=clock, shared=shared)
        self.retention = Retention(self.store, plant.hub.keep_days, clock)
        self.overview = Overview(self.store, self.devices, clock)
        self.desk = Desk(self.store, plant.alarms, clock)
        self.messenger = messenger.Messenger(
            plant, messenger.addresses(plant, base), self.desk.actions, lambda: self.look().groups, clock
        )
        self.absence = Absence(self.store, lambda: self.ingest.presence, plant.alarms.offline_s, clock)
        self.announcer = Announcer(plant, base, self.look)
        self.evidence = Evidence(
            plant.hub,
            base / plant.state / "evidence",
            fetch.Line(plant, base, clock),
            self._presence,
            clock,
            self._arrived,
        )
        folder = base / plant.hub.labelled
        self.labelled = LabelledSet(folder, self.desk.labels, self.store.alarm, self.evidence.here)
        self.replays = Replays(self.repository)
        self._base = base
        self._lock = threading.Lock()
        self._seen: watch.Line | None = None
        self._seen_news = -1
        self._acts = 0
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
        self.overview.start()
        self.messenger.start()
        self.absence.start()
        self.announcer.start()
        self.evidence.start()

    def stop(self) -> None:
        """Commit what has come in, then end the children. May be called twice."""
        self.evidence.stop()
        self.announcer.stop()
        self.absence.stop()
        self.messenger.stop()
        self.overview.stop()
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

    def label(self, device: str, key: str, word: Word, kind: str, who: str, why: str = "") -> str:
        """Keep what somebody said of an alarm, and bring its recording to the labelled set.

        Gives why the recording is not there yet, empty where it is or is on its way. Raises LinesideError for an
        unknown alarm and for what is no label.
        """
        missing = ""
        for alarm in self.desk.label(device, key, word, kind, who, why):
            self.labelled.renew(device, alarm.recording)
            if word != "withdrawn" and self.evidence.here(alarm) is None:
                try:
                    self.evidence.ask(alarm)
                except LinesideError as error:
                    missing = str(error)
        self._look_anew()
        return missing

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
        """The line as it stands now; looks within 0.4 s share one, unless there is news, for any number of pages."""
        with self._lock:
            now_ns, news = self.clock.now_ns(), self.news
            if self._seen is None or self._seen_news != news or now_ns - self._seen.now_ns > LOOK_NS:
                self._seen, self._seen_news = self._look(now_ns), news
            return self._seen

    @property
    def news(self) -> int:
        """Another number when an alarm came in here or somebody acted on one: worth a look at once."""
        return self.keeper.alarms + self._acts

    def releases(self) -> releases.Releases:
        """What runs where and how far rollouts are; reads files and the store, so not in an event loop."""
        line, records = self.look(), Records(self._base / self.plant.state / "rollouts")
        told = releases.latest(self.store.manifests, self.devices(), line.now_ns)
        return releases.look(line, told, self.pins.problem, records, line.now_ns)

    def expiries(self) -> list[Expiry]:
        """When signatures and certificates end; reads files, so not in an event loop."""
        return expiries(self.plant, self._base, self.clock.now_ns())

    def devices(self) -> list[str]:
        """The devices of the plant file and any other that has spoken."""
        return sorted({*self.plant.devices, *self.ingest.presence})

    def _look(self, now_ns: int) -> watch.Line:
        newest = self.store.newest_scores(self.devices())
        lasts = {device: watch.Arrival(*newest[device]) if device in newest else None for device in self.devices()}
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
            self.ingest.failing,
            tuple(self.desk.silences(now_ns)),
            {name: dict(devices) for name, devices in vars(self.ingest.blamed).items()},
        )

    def _known(self, now_ns: int, lasts: Mapping[str, watch.Arrival | None]) -> Floor:
        """What may inhibit alarms: a station's own word counts while it is live."""
        presence = {device: word.word for device, word in self.ingest.presence.items()}
        states = {d: last.score.state for d, last in lasts.items() if last and now_ns - last.seen_ns <= watch.STALE_NS}
        return Floor(presence, states, self.plant.alarms.maintenance)

    def _look_anew(self) -> None:
        with self._lock:
            self._acts += 1

    def _arrived(self, device: str, recording: str) -> None:
        """A recording came: what was said of its alarms before that goes with it."""
        self.labelled.renew(device, recording)

    def _presence(self, device: str) -> str:
        word = self.ingest.presence.get(device)
        return word.word if word else ""
