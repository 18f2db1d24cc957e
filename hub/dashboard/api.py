"""What programs ask the hub: its health and metrics, its read API (hub.dashboard.v1), the release repository's files.

The routes under /api that have no version are those of the demonstration.
"""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI, Query, Response
from fastapi.staticfiles import StaticFiles

from hub import metrics
from hub.alarms import Event
from hub.dashboard import v1
from hub.line import Hub
from hub.ran import look_up
from hub.tables import INT64_MAX
from hub.watch import Station
from lineside.errors import LinesideError

REPOSITORY_FOLDERS = ("metadata", "targets")


def mount(app: FastAPI, hub: Hub) -> None:
    """Add every route of the API; of the repository only what devices may read, whatever else lies in its folder."""
    _mount_state(app, hub)
    _mount_stored(app, hub)
    metrics.mount(app, hub)
    app.mount("/api/v1", v1.application(hub))
    for name in REPOSITORY_FOLDERS:
        folder = hub.repository / name
        folder.mkdir(parents=True, exist_ok=True)
        app.mount(f"/repository/{name}", StaticFiles(directory=folder), name=f"repository-{name}")


def _mount_state(app: FastAPI, hub: Hub) -> None:
    @app.get("/healthz")
    def healthz(response: Response) -> dict[str, Any]:
        """200 while the hub hears the broker and writes to its store, else 503."""
        parts = {"broker": hub.ingest.connected, "ingest": hub.ingest.well}
        response.status_code = 200 if all(parts.values()) else 503
        return {"status": "ok" if all(parts.values()) else "unwell", **parts}

    @app.get("/api/status")
    def status() -> dict[str, Any]:
        """The line now: devices with their versions, rows stored, what ingest did since the hub started."""
        line = hub.look()
        return {
            "site": hub.plant.site,
            "now_ns": line.now_ns,
            "broker": line.broker,
            "devices": {station.device: _device(station) for station in line.stations},
            "counts": hub.store.counts(),
            "ingest": line.ingest,
            "notices": line.notices,
        }

    @app.get("/api/alarms")
    def alarms(since_ns: int = Query(0, ge=0, le=INT64_MAX)) -> list[dict[str, Any]]:
        """Alarms that had a word at or after `since_ns`, and all that are open; most urgent first."""
        return [_alarm(event) for event in hub.alarms(since_ns)]


def _mount_stored(app: FastAPI, hub: Hub) -> None:
    @app.get("/api/scores")
    def scores(
        device: str, since_ns: int = Query(0, ge=0, le=INT64_MAX), limit: int = Query(1000, ge=1, le=100_000)
    ) -> list[dict[str, Any]]:
        """The newest scores of a device, oldest first."""
        return [msgspec.to_builtins(score) for score in hub.store.scores(device, since_ns, limit)]

    @app.get("/api/windows")
    def windows(
        device: str,
        modality: str,
        since_ns: int = Query(0, ge=0, le=INT64_MAX),
        until_ns: int = Query(INT64_MAX, ge=0, le=INT64_MAX),
    ) -> list[int]:
        """start_ns of every stored embedding of a modality: what proves that no window was lost."""
        return hub.store.windows(device, modality, since_ns, until_ns)

    @app.get("/api/ran")
    def ran(
        response: Response, device: str = "", at_ns: int = Query(0, ge=0, le=INT64_MAX), alarm: str = ""
    ) -> dict[str, Any]:
        """Which encoders a device ran at a moment or at an alarm's onset; 404 with the reason where that is unknown."""
        try:
            rows = look_up(hub.store, hub.pins.problem, device=device, at_ns=at_ns, alarm=alarm)
        except LinesideError as error:
            response.status_code = 404
            return {"ran": [], "reason": str(error)}
        return {"ran": [msgspec.to_builtins(row) for row in rows]}

    @app.get("/api/gaps")
    def gaps(device: str) -> dict[str, list[tuple[int, int]]]:
        """Sequence numbers that never came and that no tombstone accounts for, as ranges by epoch."""
        return {str(epoch): lost for epoch, lost in hub.store.gaps(device).items()}


def _device(station: Station) -> dict[str, Any]:
    health = station.health
    return {
        "status": station.presence,
        "word": station.word,
        "live": station.live,
        "station": station.name,
        "state": health.state if health else "",
        "last_score_ns": station.last.score.end_ns if station.last else 0,
        "versions": {modality: encoder.version for modality, encoder in health.encoders.items()} if health else {},
        "health": msgspec.to_builtins(health) if health else None,
    }


def _alarm(event: Event) -> dict[str, Any]:
    """The event with its state; pictures are named, not sent."""
    told = msgspec.to_builtins(event.raised.plain())
    return {
        **told,
        "state": event.state,
        "raised_ns": event.raised.time_ns,
        "cleared_ns": event.cleared_ns,
        "acknowledged_by": event.acknowledged_by,
        "acknowledged_ns": event.acknowledged_ns,
        "raises": len(event.raises_ns),
        "silenced_by": event.silence.who if event.silence else "",
        "silenced_until_ns": event.silence.until_ns if event.silence else 0,
        "inhibited": event.inhibited,
        "pictures": sorted(event.raised.pictures),
    }
