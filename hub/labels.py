"""What people said of alarms: real, not real, which fault. The last word counts, every word stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import sqlalchemy as sa
from sqlalchemy import BigInteger, Column, Index, Integer, String, Table

from hub.actions import WHY_MAX
from hub.tables import METADATA
from lineside.errors import LinesideError

Word = Literal["real", "not real", "withdrawn"]
WORDS: tuple[Word, ...] = get_args(Word)
KIND_MAX = 60
LABELS = Table(
    "alarm_labels",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("time_ns", BigInteger, nullable=False),
    Column("who", String, nullable=False),
    Column("device", String, nullable=False),
    Column("key", String, nullable=False),
    Column("word", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("why", String, nullable=False),
)
Index("alarm_labels_by_key", LABELS.c.device, LABELS.c.key)


@dataclass(frozen=True)
class Said:
    """One word on one alarm; `kind` is the fault's, in the words of the floor, empty where nobody said which."""

    time_ns: int
    who: str
    device: str
    key: str
    word: Word
    kind: str = ""
    why: str = ""

    @property
    def stands(self) -> bool:
        """Whether it tells anything: a label that was withdrawn does not."""
        return self.word != "withdrawn"


class Labels:
    """The rows in a store's database; every method is one transaction and safe in any thread and any hub."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._writing = engine.execution_options(writes=True)

    def add(self, rows: Sequence[Said]) -> None:
        """Write rows, all or none. Raises LinesideError for a word or a kind that is none."""
        for row in rows:
            checked(row)
        if rows:
            told = [{**vars(row), "who": row.who[:64], "why": row.why[:WHY_MAX]} for row in rows]
            with self._writing.begin() as connection:
                connection.execute(sa.insert(LABELS), told)

    def of(self, device: str, key: str) -> list[Said]:
        """All that was said of an alarm, oldest first."""
        return self._all(sa.and_(LABELS.c.device == device, LABELS.c.key == key))

    def latest(self, of: Sequence[tuple[str, str]] | None = None) -> dict[tuple[str, str], Said]:
        """The last word on every alarm, or on those, by device and key; without those that were withdrawn."""
        newest = sa.select(sa.func.max(LABELS.c.number)).group_by(LABELS.c.device, LABELS.c.key)
        if of is not None:
            newest = newest.where(sa.tuple_(LABELS.c.device, LABELS.c.key).in_(of))
        return {(each.device, each.key): each for each in self._all(LABELS.c.number.in_(newest)) if each.stands}

    def kinds(self, most: int = 12) -> list[str]:
        """The kinds of faults that were named, the usual ones first."""
        return [
            kind for kind, _ in Counter(each.kind for each in self.latest().values() if each.kind).most_common(most)
        ]

    @property
    def version(self) -> int:
        """Another number when any hub has added a row."""
        with self._engine.connect() as connection:
            return connection.execute(sa.select(sa.func.max(LABELS.c.number))).scalar() or 0

    def _all(self, wanted: sa.ColumnElement[bool]) -> list[Said]:
        query = sa.select(LABELS).where(wanted).order_by(LABELS.c.number)
        with self._engine.connect() as connection:
            return [_said(row._mapping) for row in connection.execute(query)]


def checked(row: Said) -> None:
    """Raises LinesideError for what cannot be a label."""
    kind = row.kind
    if row.word not in WORDS:
        raise LinesideError("label", f"{row.word!r} is none", f"say one of {', '.join(WORDS)}")
    if kind and (row.word != "real" or kind != kind.strip() or len(kind) > KIND_MAX or not kind.isprintable()):
        mend = f"name it in one line of at most {KIND_MAX} characters"
        raise LinesideError("label", f"{kind[:80]!r} is no kind of a real fault", mend)


def _said(row: Any) -> Said:
    return Said(**{name: value for name, value in row.items() if name != "number"})
