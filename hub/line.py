"""The running hub: broker, ingest and store, and one look at them for any number of pages."""

from __future__ import annotations

import threading
from dataclasses import asdict
from pathlib import Path

from hub import store as stores
from hub import watch
from hub.alarms import Event, book
from hub.broker import Broker
from hub.ingest import Ingest
from lineside.clock import NS, Clock
from lineside.operator import Operator, Outcome
from lineside.plant import PlantConfig

HISTORY_NS = 24 * 3600 * NS
LOOK_NS = NS * 2 // 5
BOOK_NS = 60 * NS
ANSWER_S = 60.0


class Hub:
    """Everything of one line; `start` starts it in order, `stop` stops it in the other."""

    def __init__(self, plant: PlantConfig, base: Path, clock: Clock) -> None:
        self.plant, self.clock = plant, clock
        self.repository = base / plant.repository
        self.store = stores.Store(stores.database_url(plant.hub.database, base))
        self.broker = Broker(plant, base, clock) if plant.broker.managed else None
        self.ingest = Ingest(plant.site, plant.connection("hub"), base, self.store, clock=clock)
        self._base = base
        self._lock = threading.Lock()
        self._seen: watch.Line | None = None
        self._book: tuple[int, int, list[Event]] = (-1, 0, [])

    def start(self) -> None:
        """Raises PortInUseError, BrokerError or ConfigError; then nothing is left running."""
        if self.broker is not None:
            self.broker.start()
        self.ingest.start()

    def stop(self) -> None:
        """Commit what has come in, then end the children. May be called twice."""
        self.ingest.stop()
        if self.broker is not None:
            self.broker.stop()
        self.store.close()

    def acknowledge(self, device: str, key: str, who: str) -> None:
        """Keep that somebody saw an alarm; the next look shows it."""
        self.store.acknowledge(device, key, who, self.clock.now_ns())
        with self._lock:
            self._seen = None

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
        events = self._events(now_ns)
        healths = self.store.latest_health(self.devices())
        stations = [
            watch.station(
                now_ns,
                device,
                presence=self.ingest.presence.get(device),
                health=healths.get(device),
                last=self._last(device),
                events=events,
            )
            for device in self.devices()
        ]
        numbers = {**asdict(self.ingest.counts), "waiting": self.ingest.waiting}
        return watch.Line(now_ns, self.ingest.connected, watch.worst_first(stations), tuple(events), numbers)

    def _last(self, device: str) -> watch.Arrival | None:
        newest = self.store.arrivals(device, after_ns=0, limit=1)
        return watch.Arrival(*newest[0]) if newest else None

    def _events(self, now_ns: int) -> list[Event]:
        """The alarm book, made anew when an alarm or an acknowledgement came."""
        version, made_ns, events = self._book
        if version != self.store.alarm_version or now_ns - made_ns > BOOK_NS:
            version = self.store.alarm_version
            events = book(self.store.alarms(now_ns - HISTORY_NS), self.store.acknowledgements())
            self._book = (version, now_ns, events)
        return events
