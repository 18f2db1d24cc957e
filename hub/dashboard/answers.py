"""What the read API answers, as types; its OpenAPI document is made of these and of the messages themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import msgspec
from fastapi import Response

from hub.alarms import Event, State
from hub.labels import Said
from hub.watch import Station
from lineside.errors import LinesideError
from lineside.messages import Alarm, Health, Manifest, Score

T = TypeVar("T")


class Page(msgspec.Struct, Generic[T], frozen=True):
    """Some of what was asked for, oldest first; `next` is the cursor of the next page, empty on the last one."""

    items: list[T]
    next: str = ""


class Status(msgspec.Struct, frozen=True):
    """The hub itself: rows by table, and what ingest did since the hub started."""

    site: str
    now_ns: int
    broker: bool
    rows: dict[str, int]
    ingest: dict[str, int]


class Device(msgspec.Struct, frozen=True):
    """A device as it stands now; without `live` its last score and health are of the past."""

    device: str
    station: str
    status: str
    word: str
    live: bool
    last_score_ns: int
    versions: dict[str, str]
    health: Health | None
    health_live: bool

    @classmethod
    def of(cls, station: Station) -> Device:
        """From the hub's look at it."""
        health, last = station.health, station.last
        return cls(
            device=station.device,
            station=station.name,
            status=station.presence,
            word=station.word,
            live=station.live,
            last_score_ns=last.score.end_ns if last else 0,
            versions={modality: one.version for modality, one in health.encoders.items()} if health else {},
            health=health,
            health_live=station.health_live,
        )


class AlarmEvent(msgspec.Struct, frozen=True):
    """An alarm from raise to clear; pictures are named, not sent. A time of 0 has not come.

    `label` is people's last word on what it was, null where nobody said anything.
    """

    raised: Alarm
    pictures: list[str]
    state: State
    cleared_ns: int
    acknowledged_by: str
    acknowledged_ns: int
    label: Said | None

    @classmethod
    def of(cls, event: Event) -> AlarmEvent:
        """From the alarm book, as hub.history reads it."""
        return cls(
            raised=event.raised.plain(),
            pictures=sorted(event.raised.pictures),
            state=event.state,
            cleared_ns=event.cleared_ns,
            acknowledged_by=event.acknowledged_by,
            acknowledged_ns=event.acknowledged_ns,
            label=event.label,
        )


class Gap(msgspec.Struct, frozen=True):
    """Sequence numbers `first` to `last` of an epoch never came, and no tombstone accounts for them."""

    epoch: int
    first: int
    last: int


class Refused(msgspec.Struct, frozen=True):
    """Why there is no answer: the kind of error by name, the thing, the reason and the mend."""

    error: str
    thing: str
    reason: str
    mend: str

    @classmethod
    def of(cls, name: str, error: LinesideError) -> Refused:
        """From an error of ours."""
        return cls(name, error.thing, error.reason, error.mend)


class Denied(msgspec.Struct, frozen=True):
    """The gate let nobody in: no session and no token, or another site asked."""

    error: str


ANSWERS: dict[str, Any] = {
    "Status": Status,
    "Devices": Page[Device],
    "Alarms": Page[AlarmEvent],
    "Scores": Page[Score],
    "Healths": Page[Health],
    "Manifests": Page[Manifest],
    "Windows": Page[int],
    "Gaps": Page[Gap],
    "Refused": Refused,
    "Denied": Denied,
}


def told(answer: msgspec.Struct, status: int = 200) -> Response:
    """The answer as JSON."""
    return Response(msgspec.json.encode(answer), status, media_type="application/json")


def schemas() -> dict[str, Any]:
    """Every type of ANSWERS, under its name there, and those within them, as components of an OpenAPI document."""
    roots, within = msgspec.json.schema_components(ANSWERS.values(), ref_template="#/components/schemas/{name}")
    named = dict(zip(ANSWERS, roots, strict=True))
    # A type that stands for itself is already among those within.
    return {**within, **{name: root for name, root in named.items() if root != {"$ref": f"{REF}{name}"}}}


REF = "#/components/schemas/"


def documented(name: str, told_of: str, refusals: Iterable[int] = ()) -> dict[int | str, dict[str, Any]]:
    """What a route may answer, for its documentation: `name` of ANSWERS, or one of the refusals that all may give."""
    codes: dict[int, str] = {401: "Denied", 503: "Refused", **dict.fromkeys(refusals, "Refused")}
    why = {401: "Not logged in.", 422: "A parameter is not what it must be.", 501: "Not installed.", 503: "Not now."}
    found: dict[int | str, dict[str, Any]] = {code: _json(kind, why[code]) for code, kind in codes.items()}
    return {200: _json(name, told_of), **found}


def _json(name: str, told_of: str) -> dict[str, Any]:
    return {"description": told_of, "content": {"application/json": {"schema": {"$ref": f"{REF}{name}"}}}}
