"""The book of what was done about alarms: every acknowledgement, silence and notification is a row that stays."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import BigInteger, Column, Index, Integer, String, Table

from hub.alarms import Action
from hub.tables import METADATA

ACTIONS = Table(
    "alarm_actions",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("time_ns", BigInteger, nullable=False),
    Column("who", String, nullable=False),
    Column("what", String, nullable=False),
    Column("device", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("why", String, nullable=False),
    Column("until_ns", BigInteger, nullable=False),
)
Index("alarm_actions_by_time", ACTIONS.c.time_ns)
Index("alarm_actions_by_end", ACTIONS.c.until_ns)
Index("alarm_actions_by_subject", ACTIONS.c.device, ACTIONS.c.subject)
WHY_MAX = 200


class Actions:
    """The rows in a store's database; every method is one transaction and safe in any thread and any hub."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._writing = engine.execution_options(writes=True)

    def add(self, actions: Sequence[Action]) -> None:
        """Write rows, all or none."""
        rows = [{**vars(action), "who": action.who[:64], "why": action.why[:WHY_MAX]} for action in actions]
        if rows:
            with self._writing.begin() as connection:
                connection.execute(sa.insert(ACTIONS), rows)

    @property
    def version(self) -> int:
        """Another number when any hub has added a row."""
        with self._engine.connect() as connection:
            return connection.execute(sa.select(sa.func.max(ACTIONS.c.number))).scalar() or 0

    def since(self, since_ns: int) -> list[Action]:
        """What was done at or after `since_ns`, and silences that end later than that; oldest first."""
        c = ACTIONS.c
        return self._all(sa.or_(c.time_ns >= since_ns, c.until_ns > since_ns))

    def of(self, device: str, subjects: Collection[str]) -> list[Action]:
        """What was ever done about some keys or subjects of a device, oldest first."""
        return self._all(sa.and_(ACTIONS.c.device == device, ACTIONS.c.subject.in_(subjects)))

    def _all(self, wanted: sa.ColumnElement[bool]) -> list[Action]:
        query = sa.select(ACTIONS).where(wanted).order_by(ACTIONS.c.number)
        with self._engine.connect() as connection:
            return [_action(row._mapping) for row in connection.execute(query)]


def _action(row: Any) -> Action:
    return Action(**{name: value for name, value in row.items() if name != "number"})
