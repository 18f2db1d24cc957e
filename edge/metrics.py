"""What the agent counts, for Prometheus: `/metrics`, `/healthz` and `/readyz` over HTTP, on this machine alone.

Nothing is computed until somebody asks. Names follow Prometheus' rules (prometheus/docs, practices/naming.md): base
units in the name, `_total` for what only grows, and no label whose values could grow without bound.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from edge.config import MetricsSettings
from edge.stages import Stages
from lineside.messages import Health
from lineside.quality import FLAGS

log = logging.getLogger(__name__)
PATIENCE_S = 5.0  # with somebody who connects and says nothing
WORKING = ("commissioning", "watching")  # states of an agent that has its encoders
PLAIN = "text/plain; charset=utf-8"
Answer = tuple[int, str, bytes]  # HTTP status, content type, body


class AgentCollector(Collector):
    """One device's health and stages as metric families."""

    def __init__(self, health: Callable[[], Health], stages: Stages, connected: Callable[[], bool]) -> None:
        self._health, self._stages, self._connected = health, stages, connected

    def collect(self) -> Iterable[Metric]:
        health = self._health()
        yield from _agent(health, self._connected())
        yield from _capture(health)
        yield from _judged(health)
        yield _durations(self._stages)


def _agent(health: Health, connected: bool) -> Iterable[Metric]:
    yield InfoMetricFamily("lineside_build", "The agent.", {"version": health.agent})
    state = GaugeMetricFamily("lineside_agent_state", "1 for the state that the agent is in.", labels=["state"])
    state.add_metric([health.state], 1)
    yield state
    yield GaugeMetricFamily("lineside_uptime_seconds", "Since the agent started.", health.uptime_s)
    yield GaugeMetricFamily("lineside_problems", "Problems that health tells of.", len(health.problems))
    yield GaugeMetricFamily("lineside_mqtt_connected", "1 while messages get out to the broker.", float(connected))
    yield GaugeMetricFamily("lineside_outbox_messages", "Messages that wait for the hub.", health.outbox_messages)
    yield GaugeMetricFamily("lineside_outbox_bytes", "Their size.", health.outbox_bytes)
    dropped = "Messages that gave way to the outbox's bound."
    yield CounterMetricFamily("lineside_outbox_dropped", dropped, health.dropped_messages)
    model = InfoMetricFamily("lineside_model", "The encoder in use.", labels=["modality"])
    for modality, encoder in health.encoders.items():
        about = {
            "version": encoder.version,
            "space": encoder.space,
            "provider": encoder.provider.partition(" instead of ")[0],
        }
        model.add_metric([modality], about)
    yield model


def _capture(health: Health) -> Iterable[Metric]:
    labels = ["sensor", "modality"]
    up = GaugeMetricFamily("lineside_capture_up", "1 while a sensor gives samples.", labels=labels)
    windows = CounterMetricFamily("lineside_capture_windows", "Windows that were cut.", labels=labels)
    dropped = CounterMetricFamily("lineside_capture_dropped_samples", "Samples lost before cutting.", labels=labels)
    flagged = GaugeMetricFamily(
        "lineside_capture_flagged", "1 for a flag of the last window.", labels=[*labels, "flag"]
    )
    for name, sensor in health.sensors.items():
        who = [name, sensor.modality]
        up.add_metric(who, float(not sensor.problem))
        windows.add_metric(who, sensor.windows)
        dropped.add_metric(who, sensor.dropped_samples)
        for flag in FLAGS:
            flagged.add_metric([*who, flag], float(flag in sensor.flags))
    yield from (up, windows, dropped, flagged)


def _judged(health: Health) -> Iterable[Metric]:
    yield CounterMetricFamily("lineside_windows_embedded", "Windows that an encoder saw.", health.embedded)
    yield CounterMetricFamily("lineside_moments", "Moments of all sensors.", health.moments)
    yield CounterMetricFamily("lineside_scores", "Moments that were judged.", health.scores)
    share = GaugeMetricFamily("lineside_contribution_ratio", "Share of all evidence of late.", labels=["sensor"])
    there = GaugeMetricFamily("lineside_availability_ratio", "Share of moments with this sensor.", labels=["sensor"])
    for name, one in health.contributions.items():
        share.add_metric([name], one.share)
        there.add_metric([name], one.availability)
    yield from (share, there)


def _durations(stages: Stages) -> Metric:
    told = "How long each stage of the hot path takes."
    found = HistogramMetricFamily("lineside_inference_duration_seconds", told, labels=["stage"])
    for name, watch in stages.items():
        found.add_metric([name], list(watch.cumulative()), watch.total_ns / 1e9)
    return found


def unready(health: Health, connected: bool) -> list[str]:
    """What keeps the device from doing all its work: encoders, sensors, broker; empty when nothing does."""
    told = [] if health.state in WORKING else [f"agent: {health.state}"]
    for name, sensor in health.sensors.items():
        if sensor.problem or not sensor.windows:
            told.append(sensor.problem or f"{name}: no window yet")
    return told if connected else [*told, "broker: not connected"]


class Pages:
    """One agent's pages: `/metrics`, `/healthz` and `/readyz`."""

    def __init__(self, health: Callable[[], Health], stages: Stages, connected: Callable[[], bool]) -> None:
        self._health, self._connected = health, connected
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(AgentCollector(health, stages, connected))
        ProcessCollector(registry=self._registry)

    def answer(self, path: str, accept: str) -> Answer:
        """The page at `path`, in the form that the Accept header asks for."""
        if path == "/healthz":
            return 200, PLAIN, b"ok\n"
        if path == "/readyz":
            told = unready(self._health(), self._connected())
            return 503 if told else 200, PLAIN, ("\n".join(told or ["ok"]) + "\n").encode()
        if path != "/metrics":
            return 404, PLAIN, b"not here\n"
        encode, kind = choose_encoder(accept)
        try:
            return 200, kind, encode(self._registry)
        except RuntimeError as error:  # a table grew while it was read: whoever asks again gets it
            return 503, PLAIN, f"{error}\n".encode()


class MetricsServer:
    """Serves an agent's pages in threads of its own; `problem` says why it cannot, empty while it can.

    `answer` is Pages.answer, or asks for it across a socket (edge.courier).
    """

    def __init__(self, settings: MetricsSettings, answer: Callable[[str, str], Answer]) -> None:
        self._settings, self._answer = settings, answer
        self._server: ThreadingHTTPServer | None = None
        self.problem = ""

    @property
    def port(self) -> int:
        """The port that it listens on; 0 while it does not."""
        return int(self._server.server_address[1]) if self._server else 0

    def start(self) -> None:
        """Begin to serve; without a port in the settings nothing is begun."""
        if not self._settings.port:
            return
        place = (self._settings.host, self._settings.port)
        try:
            self._server = _Server(place, type("Handler", (_Handler,), {"answer": staticmethod(self._answer)}))
        except OSError as error:
            self.problem = f"metrics: {place[0]}:{place[1]} cannot be served ({error}); choose another [metrics] port"
            log.warning("%s", self.problem)
            return
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16


class _Handler(BaseHTTPRequestHandler):
    """GET of a page."""

    answer: Callable[[str, str], Answer]
    timeout = PATIENCE_S

    def do_GET(self) -> None:
        status, kind, body = self.answer(self.path.partition("?")[0], self.headers.get("Accept", ""))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Every scrape in the log would bury what matters."""
