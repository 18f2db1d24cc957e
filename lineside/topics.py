"""The table of MQTT topics: who writes what, how it is encoded, how it is delivered.

lineside/v1/{site}/{device}/{kind}            device, hub
lineside/v1/{site}/{device}/state             operator (or the PLC's gateway, under that role)
lineside/v1/{site}/{device}/cmd/{op}/{id}     operator and device
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from lineside.errors import WireError
from lineside.messages import Ack, Alarm, Command, Embeddings, Health, Manifest, Piece, Score, StationState, Tombstone

VERSION = "v1"
ROOT = f"lineside/{VERSION}"
Writer = Literal["device", "hub", "operator"]


@dataclass(frozen=True)
class Topic:
    """One row of the agreement; `stored` messages carry a sequence number and are acknowledged by the hub."""

    kind: str
    payload: type[msgspec.Struct] | None
    encoding: Literal["json", "msgpack", "text"]
    qos: int
    retain: bool
    writers: tuple[Writer, ...]
    readers: tuple[Writer, ...]
    stored: bool
    depth: int = 0


TOPICS: dict[str, Topic] = {
    topic.kind: topic
    for topic in (
        Topic("embedding", Embeddings, "msgpack", 1, False, ("device",), ("hub",), stored=True),
        Topic("score", Score, "json", 1, False, ("device",), ("hub", "operator"), stored=True),
        Topic("alarm", Alarm, "json", 1, False, ("device",), ("hub", "operator"), stored=True),
        Topic("health", Health, "json", 1, True, ("device",), ("hub", "operator"), stored=True),
        Topic("manifest", Manifest, "json", 1, True, ("device",), ("hub", "operator"), stored=True),
        Topic("tombstone", Tombstone, "json", 1, False, ("device",), ("hub",), stored=True),
        Topic("status", None, "text", 1, True, ("device",), ("hub", "operator"), stored=False),
        Topic("evidence", Piece, "msgpack", 1, False, ("device",), ("hub",), stored=False),
        Topic("ack", Ack, "json", 1, False, ("hub",), ("device",), stored=False),
        Topic("state", StationState, "json", 1, True, ("operator",), ("device", "operator"), stored=False),
        Topic("cmd", Command, "json", 1, True, ("operator", "device"), ("device", "operator"), stored=False, depth=2),
    )
}
STATUS = ("online", "offline", "stopped")


def name(site: str, device: str, kind: str, *rest: str) -> str:
    """The topic of one kind for one device.

    >>> name("line1", "press-3", "score")
    'lineside/v1/line1/press-3/score'
    >>> name("line1", "press-3", "cmd", "rollback", "7f")
    'lineside/v1/line1/press-3/cmd/rollback/7f'
    """
    parts = (site, device, kind, *rest)
    if kind not in TOPICS or len(rest) != TOPICS[kind].depth or any(c in part for part in parts for c in "+#/"):
        raise ValueError(f"no such topic: {parts}")
    return "/".join((ROOT, *parts))


def everything(site: str, device: str, kind: str) -> str:
    """The subscription filter for one kind; site and device may be `+`.

    A device's status is heard in whatever version it speaks: one that was updated before its hub is told, not missed.

    >>> everything("line1", "+", "score"), everything("line1", "+", "status")
    ('lineside/v1/line1/+/score', 'lineside/+/line1/+/status')
    """
    root = "lineside/+" if kind == "status" else ROOT
    return "/".join((root, site, device, kind, *["+"] * TOPICS[kind].depth))


def parse(topic: str) -> tuple[str, str, str, tuple[str, ...]]:
    """Site, device, kind and the rest of a topic. Raises WireError for a topic that is not in the table.

    >>> parse("lineside/v1/line1/press-3/ack")
    ('line1', 'press-3', 'ack', ())
    """
    parts = topic.split("/")
    if parts[0] == "lineside" and len(parts) > 1 and parts[1] != VERSION:
        raise WireError(topic, f"its sender speaks {parts[1]}, this side {VERSION}", "update the older side")
    known = len(parts) >= 5 and "/".join(parts[:2]) == ROOT and parts[4] in TOPICS
    if not known or len(parts) != 5 + TOPICS[parts[4]].depth:
        raise WireError(topic, "is no topic of ours", "see lineside.topics.TOPICS")
    return parts[2], parts[3], parts[4], tuple(parts[5:])


def rules(role: Writer, site: str, device: str = "+") -> list[tuple[Literal["read", "write", "readwrite"], str]]:
    """What a role may do, as (access, filter) rows for the broker's access list; a device sees only its own subtree."""
    rows: list[tuple[Literal["read", "write", "readwrite"], str]] = []
    for kind, topic in TOPICS.items():
        reads, writes = role in topic.readers, role in topic.writers
        if reads or writes:
            access: Literal["read", "write", "readwrite"] = (
                "readwrite" if reads and writes else "read" if reads else "write"
            )
            rows.append((access, everything(site, device, kind)))
    return rows
