"""What the hub counts, for Prometheus: `/metrics` of its web server.

Names follow Prometheus' rules (prometheus/docs, practices/naming.md): base units in the name, `_total` for what only
grows, and no label whose values could grow without bound. Nothing is computed until somebody asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, get_args

from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from hub import tables, watch
from hub.alarms import URGENCY
from hub.ingest import Keeper
from lineside import __version__
from lineside.clock import NS, Clock
from lineside.messages import AlarmKind

if TYPE_CHECKING:
    from hub.line import Hub

COMMIT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# By the name of the count in hub.ingest.Counts.
COUNTS = {
    "received": "Messages that came in.",
    "refused": "Messages that were not of ours.",
    "queue_full": "Messages that found the queue full; their devices send them again.",
    "stored": "Messages that were committed for the first time.",
    "duplicates": "Messages that came again and were there already.",
    "commit_failed": "Messages that could not be committed; their devices send them again.",
    "database_locked": "Messages that were not committed because somebody else had locked the database.",
    "database_full": "Messages that were not committed because the disk or the database is full.",
    "ahead": "Messages that were stored though their device's clock runs ahead.",
}
# By the name of the count in hub.ingest.Blamed.
BLAMED = {
    "refused": "Messages of a device that were not of ours.",
    "queue_full": "Messages of a device that floods a full queue; it sends them again.",
    "ahead": "Messages of a device that were stored though its clock runs ahead.",
}
# By the name of the count in hub.messenger.Counts.
NOTICES = {
    "told": "Messages about alarms that an address has taken.",
    "retried": "Attempts to send a message that were made again.",
    "failed": "Messages about alarms that an address did not take.",
}


class TimedKeeper:
    """Hands rows on to the store, and remembers how long each commit took; `alarms` grows with words of alarms."""

    def __init__(self, keeper: Keeper, clock: Clock) -> None:
        self._keeper, self._clock = keeper, clock
        told = "How long a commit of a batch of messages takes, failed ones too."
        name = "lineside_hub_commit_duration_seconds"
        self.took = Histogram(name, told, registry=None, buckets=COMMIT_BUCKETS_S)
        self.alarms = 0

    def add(self, rows: Sequence[tables.Row]) -> int:
        """As Keeper.add; a look at an idle store is no commit of a batch."""
        if not rows:
            return self._keeper.add(rows)
        began_ns = self._clock.now_ns()
        try:
            return self._keeper.add(rows)
        finally:
            self.took.observe((self._clock.now_ns() - began_ns) / NS)
            self.alarms += sum(row.kind == "alarm" for row in rows)


class HubCollector(Collector):
    """One look at the hub as metric families."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def collect(self) -> Iterable[Metric]:
        line = self._hub.look()
        yield InfoMetricFamily("lineside_hub_build", "The hub.", {"version": __version__})
        yield from _ingest(self._hub, line)
        yield from _rows(self._hub.store.counts())
        yield from _devices(line)
        yield from _alarms(line)
        yield from _notices(line)


def _ingest(hub: Hub, line: watch.Line) -> Iterable[Metric]:
    connected = "1 while the hub hears the broker."
    yield GaugeMetricFamily("lineside_hub_broker_connected", connected, float(line.broker))
    if hub.broker is not None:
        died = "How often the hub's own broker died and was started again."
        yield CounterMetricFamily("lineside_hub_broker_restarts", died, hub.broker.restarts)
    yield GaugeMetricFamily("lineside_hub_queue_messages", "Messages that wait for a commit.", hub.ingest.waiting)
    for name, told in COUNTS.items():
        yield CounterMetricFamily(f"lineside_hub_{name}_messages", told, line.ingest[name])


def _rows(counts: dict[str, int]) -> Iterable[Metric]:
    rows = GaugeMetricFamily("lineside_hub_rows", "Rows that are stored, by table.", labels=["table"])
    for table, count in counts.items():
        rows.add_metric([table], count)
    yield rows


def _devices(line: watch.Line) -> Iterable[Metric]:
    words = Counter(station.word for station in line.stations)
    states = GaugeMetricFamily("lineside_hub_devices", "Devices by the word on their tile.", labels=["state"])
    for word in watch.WORDS:
        states.add_metric([word], words[word])
    up = GaugeMetricFamily("lineside_hub_device_up", "1 while a device's scores are live.", labels=["device"])
    seen = "End of the newest moment that a device judged."
    last = GaugeMetricFamily("lineside_hub_last_score_timestamp_seconds", seen, labels=["device"])
    evidence = "Anomaly evidence (nats) of a device's newest moment, while it is live."
    score = GaugeMetricFamily("lineside_hub_score_nats", evidence, labels=["device"])
    waits = GaugeMetricFamily("lineside_hub_outbox_messages", "Messages that wait in a live device.", labels=["device"])
    for station in line.stations:
        up.add_metric([station.device], float(station.live))
        if station.last is not None:
            last.add_metric([station.device], station.last.score.end_ns / NS)
            if station.live:  # a stale value is never shown as live
                score.add_metric([station.device], station.last.score.evidence)
        if station.health is not None and station.health_live:
            waits.add_metric([station.device], station.health.outbox_messages)
    yield from (states, up, last, score, waits)
    for name, told in BLAMED.items():
        causes = CounterMetricFamily(f"lineside_hub_device_{name}_messages", told, labels=["device"])
        for station in line.stations:
            causes.add_metric([station.device], line.blamed[name].get(station.device, 0))
        yield causes


def _alarms(line: watch.Line) -> Iterable[Metric]:
    told = "Alarms that are open or of the last day, by their state."
    states = GaugeMetricFamily("lineside_hub_alarms", told, labels=["state"])
    found = Counter(event.state for event in line.events)
    for state in URGENCY:
        states.add_metric([state], found[state])
    active = GaugeMetricFamily("lineside_hub_alarms_active", "Alarms that still hold, by their kind.", labels=["kind"])
    kinds = Counter(event.raised.kind for event in line.events if event.active)
    for kind in get_args(AlarmKind):
        active.add_metric([kind], kinds[kind])
    yield from (states, active)


def _notices(line: watch.Line) -> Iterable[Metric]:
    active = sum(any(event.active for event in group.events) for group in line.groups)
    yield GaugeMetricFamily(
        "lineside_hub_alarm_groups", "Groups of alarms that belong together and still hold.", active
    )
    for name, told in NOTICES.items():
        yield CounterMetricFamily(f"lineside_hub_notifications_{name}_messages", told, line.notices[name])
    held = "Messages about alarms that wait for the limit of an hour."
    yield GaugeMetricFamily("lineside_hub_notifications_held_messages", held, line.notices["held"])


def mount(app: FastAPI, hub: Hub) -> None:
    """Add `/metrics`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(HubCollector(hub))
    registry.register(hub.keeper.took)
    ProcessCollector(registry=registry)

    @app.get("/metrics", include_in_schema=False)
    def metrics(request: Request) -> Response:
        """What the hub counts, in the form that the Accept header asks for."""
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": kind})
