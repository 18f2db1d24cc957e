"""What the hub keeps: one table a kind of stored message, and the columns taken out of each message for queries.

`body` is the payload as it came over the wire, so that every alarm can be replayed bit for bit later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Column, Float, Index, LargeBinary, MetaData, String, Table

from lineside.errors import WireError
from lineside.messages import Embeddings

METADATA = MetaData()
INT64_MAX = 2**63 - 1
TEXT_MAX = 400


def _stored(name: str, *columns: Column[Any]) -> Table:
    """A table of one message a row, numbered as its device numbered it; `received_ns` is the hub's own time."""
    return Table(
        name,
        METADATA,
        Column("device", String, primary_key=True),
        Column("epoch", BigInteger, primary_key=True, autoincrement=False),
        Column("seq", BigInteger, primary_key=True, autoincrement=False),
        Column("received_ns", BigInteger, nullable=False),
        *columns,
        Column("body", LargeBinary, nullable=False),
    )


def _text(name: str) -> Column[str]:
    return Column(name, String, nullable=False)


def _time(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


EMBEDDINGS = _stored("embeddings", _text("station"), _time("start_ns"), _text("modalities"))
SCORES = _stored("scores", _text("station"), _time("start_ns"), Column("p_value", Float, nullable=False))
ALARMS = _stored("alarms", _text("station"), _text("key"), _text("state"), _time("time_ns"))
HEALTH = _stored("health", _text("station"), _time("time_ns"))
MANIFESTS = _stored("manifests", _text("station"), _time("time_ns"))
TOMBSTONES = _stored("tombstones", _time("time_ns"))
ACKNOWLEDGEMENTS = Table(
    "acknowledgements",
    METADATA,
    Column("device", String, primary_key=True),
    Column("key", String, primary_key=True),
    _text("who"),
    _time("time_ns"),
)
TOTALS = Table(
    "totals",  # counting the rows themselves would read all of them
    METADATA,
    Column("name", String, primary_key=True),
    Column("added", BigInteger, nullable=False),
    Column("removed", BigInteger, nullable=False),
)
OPEN_ALARMS = Table(
    "open_alarms",  # not cleared, or not acknowledged
    METADATA,
    Column("device", String, primary_key=True),
    Column("key", String, primary_key=True),
)
RETIRED = Table(
    "retired",  # numbers up to `upto` have come, but for those in `missing`; old ones may be kept no longer
    METADATA,
    Column("device", String, primary_key=True),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("upto", BigInteger, nullable=False),
)
MISSING = Table(
    "missing",
    METADATA,
    Column("device", String, primary_key=True),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("first", BigInteger, primary_key=True, autoincrement=False),
    Column("last", BigInteger, nullable=False),
)


def _minutes(name: str) -> Table:
    """A table of hub.minutes.Minute."""
    return Table(
        name,
        METADATA,
        Column("device", String, primary_key=True),
        Column("start_ns", BigInteger, primary_key=True, autoincrement=False),
        Column("station", String, primary_key=True),
        Column("scores", BigInteger, nullable=False),
        Column("p_value", Float, nullable=False),
        Column("evidence", Float, nullable=False),
        Column("contributions", LargeBinary, nullable=False),
        Column("p_limit", Float),
        Column("agreements", LargeBinary),
    )


SCORE_MINUTES = _minutes("score_minutes")  # what is left of scores that are kept no longer
SCORE_OVERVIEW = _minutes("score_overview")  # the same of scores that are kept, so that a month is drawn from minutes
Index("embeddings_by_time", EMBEDDINGS.c.device, EMBEDDINGS.c.start_ns)
Index("scores_by_time", SCORES.c.device, SCORES.c.start_ns)
Index("scores_by_arrival", SCORES.c.device, SCORES.c.received_ns)
Index("manifests_by_time", MANIFESTS.c.device, MANIFESTS.c.time_ns)
Index("alarms_by_key", ALARMS.c.device, ALARMS.c.key)
Index("alarms_by_time", ALARMS.c.time_ns)
Index("acknowledgements_by_time", ACKNOWLEDGEMENTS.c.time_ns)


@dataclass(frozen=True)
class Kept:
    """Where one kind of message is kept, and its own columns."""

    table: Table
    columns: Callable[[Any], dict[str, Any]]


KEPT: dict[str, Kept] = {
    "embedding": Kept(
        EMBEDDINGS, lambda m: {"station": m.station, "start_ns": m.start_ns, "modalities": modalities_text(m)}
    ),
    "score": Kept(SCORES, lambda m: {"station": m.station, "start_ns": m.start_ns, "p_value": m.p_value}),
    "alarm": Kept(ALARMS, lambda m: {"station": m.station, "key": m.key, "state": m.state, "time_ns": m.time_ns}),
    "health": Kept(HEALTH, lambda m: {"station": m.station, "time_ns": m.time_ns}),
    "manifest": Kept(MANIFESTS, lambda m: {"station": m.station, "time_ns": m.time_ns}),
    "tombstone": Kept(TOMBSTONES, lambda m: {"time_ns": m.time_ns}),
}


@dataclass(frozen=True)
class Row:
    """One message on its way into its table."""

    kind: str
    values: dict[str, Any]

    @property
    def place(self) -> tuple[str, int, int]:
        """Device, epoch and sequence number."""
        return self.values["device"], self.values["epoch"], self.values["seq"]

    @property
    def time_ns(self) -> int:
        """What the device's clock said: when the moment began, or when the message was made."""
        told: int = self.values["time_ns"] if "time_ns" in self.values else self.values["start_ns"]
        return told


def row(kind: str, message: Any, payload: bytes, received_ns: int) -> Row:
    """The row of one decoded message.

    Raises WireError for a value that a database refuses (beyond 64 bits, a NUL, a text of more than 400 characters):
    one such row would make its whole batch fail, again and again.
    """
    head = {"device": message.device, "epoch": message.epoch, "seq": message.seq, "received_ns": received_ns}
    values = {**head, **KEPT[kind].columns(message)}
    for name, value in values.items():
        if isinstance(value, int) and not 0 <= value <= INT64_MAX:
            raise WireError(kind, f"{name} {value} is not in 0..2^63-1", "update the sender")
        if isinstance(value, str) and ("\0" in value or len(value) > TEXT_MAX):
            raise WireError(kind, f"{name} has a NUL or more than {TEXT_MAX} characters", "update the sender")
    return Row(kind, {**values, "body": payload})


def modalities_text(message: Embeddings) -> str:
    """The modalities of a moment, each between commas, so that one can be found with LIKE.

    >>> from lineside.messages import Embedding
    >>> one = Embedding("cam0", "camera", "v1", "s", b"")
    >>> modalities_text(Embeddings(device="d", station="s", start_ns=0, end_ns=1, embeddings=[one]))
    ',camera,'
    """
    return "," + "".join(f"{name}," for name in sorted({each.modality for each in message.embeddings}))
