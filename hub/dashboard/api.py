"""The hub's read API (JSON) and the release repository's files."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI, Query, Response
from fastapi.staticfiles import StaticFiles

from hub.alarms import Event, book
from hub.line import Hub
from hub.tables import INT64_MAX
from hub.watch import Station

REPOSITORY_FOLDERS = ("metadata", "targets")


def mount(app: FastAPI, hub: Hub) -> None:
    """Add every route of the API; of the repository only what devices may read, whatever else lies in its folder."""
    _mount_state(app, hub)
    _mount_stored(app, hub)
    for name in REPOSITORY_FOLDERS:
        folder = hub.repository / name
        folder.mkdir(parents=True, exist_ok=True)
        app.mount(f"/repository/{name}", StaticFiles(directory=folder), name=f"repository-{name}")


def _mount_state(app: FastAPI, hub: Hub) -> None:
    @app.get("/healthz")
    def healthz(response: Response) -> dict[str, Any]:
        """200 while the hub hears the broker and writes to its store, else 503."""
        parts = {"broker": hub.ingest.connected, "ingest": hub.ingest.alive}
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
        }

    @app.get("/api/alarms")
    def alarms(since_ns: int = Query(0, ge=0, le=INT64_MAX)) -> list[dict[str, Any]]:
        """Alarms that had a word at or after `since_ns`, and all that are open; most urgent first."""
        return [_alarm(event) for event in book(hub.store.alarms(since_ns), hub.store.acknowledgements())]


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
    told = msgspec.to_builtins(msgspec.structs.replace(event.raised, pictures={}))
    return {
        **told,
        "state": event.state,
        "raised_ns": event.raised.time_ns,
        "cleared_ns": event.cleared_ns,
        "acknowledged_by": event.acknowledged_by,
        "acknowledged_ns": event.acknowledged_ns,
        "pictures": sorted(event.raised.pictures),
    }
