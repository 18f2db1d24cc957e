"""Who may look at the line, act on it and change it; and the book of what everybody did.

Passwords are hashed with Argon2id (RFC 9106) by argon2-cffi, at its defaults. A session is 32 random bytes that only
the browser has: the database keeps their SHA-256, so that a stolen backup opens no page.
"""

from __future__ import annotations

import functools
import hashlib
import re
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError
from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, String, Table

from hub.tables import METADATA
from hub.throttle import Throttle
from lineside.clock import NS, Clock
from lineside.errors import AccessError

Role = Literal["viewer", "operator", "engineer"]
ROLES: tuple[Role, ...] = get_args(Role)  # each may do what those before it may
# What each action needs; what is not named here is looking, which every role may.
NEEDS: dict[str, Role] = {
    "acknowledge": "operator",
    "silence": "operator",
    "label": "operator",
    "evidence": "operator",
    "state": "operator",
    "fault": "engineer",
    "rollback": "engineer",
    "update": "engineer",
    "commission": "engineer",
    "record": "engineer",
}
LEAST_CHARACTERS, MOST_CHARACTERS = 10, 256
TOKEN_BYTES = 32
SEEN_EVERY_NS = 60 * NS

USERS = Table(
    "users",
    METADATA,
    Column("name", String, primary_key=True),
    Column("role", String, nullable=False),
    Column("password", String, nullable=False),
    Column("since_ns", BigInteger, nullable=False),
)
SESSIONS = Table(
    "sessions",
    METADATA,
    Column("token_sha256", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("program", Boolean, nullable=False),
    Column("since_ns", BigInteger, nullable=False),
    Column("seen_ns", BigInteger, nullable=False),
)
AUDIT = Table(
    "audit",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("time_ns", BigInteger, nullable=False),
    Column("who", String, nullable=False),
    Column("action", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("outcome", String, nullable=False),
)
Index("audit_by_time", AUDIT.c.time_ns)


@dataclass(frozen=True)
class Who:
    """A person or program that asks; `name` is what the books say."""

    name: str
    role: Role

    def may(self, action: str) -> bool:
        """Whether the role is enough for an action of NEEDS.

        >>> Who("mori", "viewer").may("acknowledge"), Who("sato", "engineer").may("acknowledge")
        (False, True)
        """
        return ROLES.index(self.role) >= ROLES.index(NEEDS.get(action, "viewer"))

    def must(self, action: str) -> None:
        """Raise AccessError where the role is not enough."""
        if not self.may(action):
            mend = f"ask somebody with the role {NEEDS[action]}"
            raise AccessError(self.name, f"may not {action} as {self.role}", mend)


@dataclass(frozen=True)
class Done:
    """One row of the audit log."""

    time_ns: int
    who: str
    action: str
    subject: str
    outcome: str


class Accounts:
    """Users, sessions and the audit log of one hub; safe in any thread. `hours` is how long an idle session lasts."""

    def __init__(
        self, engine: sa.Engine, clock: Clock, hours: float = 12.0, hasher: PasswordHasher | None = None
    ) -> None:
        self._engine, self._clock = engine, clock
        self._writing = engine.execution_options(writes=True)
        self._idle_ns = round(hours * 3600 * NS)
        self._hasher = hasher or PasswordHasher()
        self._throttle = Throttle(clock)
        self._hashing = threading.Lock()  # each hash takes 64 MiB: one at a time

    def users(self) -> list[tuple[str, Role]]:
        """Everybody with a password, by name."""
        query = sa.select(USERS.c.name, USERS.c.role).order_by(USERS.c.name)
        with self._engine.connect() as connection:
            return [(row.name, row.role) for row in connection.execute(query)]

    def add(self, name: str, role: Role, password: str) -> None:
        """Raises AccessError for a name that is no name or taken, or a password that is too short."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}", name):
            raise AccessError(repr(name), "is no user name", "use letters, digits, '.', '_', '@' and '-'")
        row = {"name": name, "role": role, "password": self._hashed(password), "since_ns": self._clock.now_ns()}
        try:
            with self._writing.begin() as connection:
                connection.execute(sa.insert(USERS), [row])
        except sa.exc.IntegrityError as error:
            raise AccessError(name, "is there already", "choose another name, or `lineside hub user passwd`") from error

    def set_password(self, name: str, password: str) -> None:
        """Also ends the user's sessions. Raises AccessError for an unknown user or a short password."""
        self._change(sa.update(USERS).where(USERS.c.name == name).values(password=self._hashed(password)), name)

    def remove(self, name: str) -> None:
        """Also ends the user's sessions and tokens. Raises AccessError for an unknown user."""
        self._change(sa.delete(USERS).where(USERS.c.name == name), name)

    def enter(self, name: str, password: str, address: str) -> str:
        """A new session's token for the right password. Raises AccessError; too many wrong ones have to wait."""
        if (wait_s := self._throttle.wait_s(name, address)) > 0:
            raise AccessError("login", f"too many wrong passwords; wait {wait_s:.0f} s", "then try again")
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(USERS).where(USERS.c.name == name)).first()
        if not self._right(row.password if row else self._nobody, password) or row is None:
            self._throttle.failed(name, address)
            self.note(name, "login", address, "refused")
            raise AccessError("login", "name or password is wrong", "try again, or ask an engineer for a new password")
        self._throttle.well(name, address)
        self.note(name, "login", address, "done")
        return self._begin(name, program=False)

    def token(self, name: str) -> str:
        """A token for a program that asks in this user's name; it holds until the user is removed or changed."""
        if name not in dict(self.users()):
            raise self._unknown(name)
        return self._begin(name, program=True)

    def who(self, token: str) -> Who | None:
        """Whose session this is, None for one that is unknown or was idle for too long."""
        key, now_ns = _sha256(token), self._clock.now_ns()
        query = sa.select(SESSIONS, USERS.c.role).join(USERS, USERS.c.name == SESSIONS.c.name)
        with self._engine.connect() as connection:
            row = connection.execute(query.where(SESSIONS.c.token_sha256 == key)).first()
        if row is None or (not row.program and now_ns - row.seen_ns > self._idle_ns):
            return None
        if now_ns - row.seen_ns > SEEN_EVERY_NS:
            with self._writing.begin() as connection:
                seen = sa.update(SESSIONS).where(SESSIONS.c.token_sha256 == key).values(seen_ns=now_ns)
                connection.execute(seen)
        return Who(row.name, row.role)

    def leave(self, token: str) -> None:
        """End a session."""
        with self._writing.begin() as connection:
            connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.token_sha256 == _sha256(token)))

    def note(self, who: str, action: str, subject: str, outcome: str) -> None:
        """Write a row of the audit log."""
        told = {"who": who[:64], "action": action, "subject": subject[:200], "outcome": outcome[:200]}
        with self._writing.begin() as connection:
            connection.execute(sa.insert(AUDIT), [{"time_ns": self._clock.now_ns(), **told}])

    def audit(self, limit: int = 1000) -> Sequence[Done]:
        """The newest rows of the audit log, newest first."""
        query = sa.select(AUDIT).order_by(AUDIT.c.number.desc()).limit(limit)
        with self._engine.connect() as connection:
            found = connection.execute(query).all()
        return [Done(row.time_ns, row.who, row.action, row.subject, row.outcome) for row in found]

    @functools.cached_property
    def _nobody(self) -> str:
        """A hash for unknown names, so that they cost the time of a known one."""
        return self._hasher.hash(secrets.token_hex(16))

    def _begin(self, name: str, *, program: bool) -> str:
        token, now_ns = secrets.token_urlsafe(TOKEN_BYTES), self._clock.now_ns()
        row = {"token_sha256": _sha256(token), "name": name, "program": program, "since_ns": now_ns, "seen_ns": now_ns}
        over = sa.delete(SESSIONS).where(~SESSIONS.c.program, SESSIONS.c.seen_ns < now_ns - self._idle_ns)
        with self._writing.begin() as connection:
            connection.execute(over)
            connection.execute(sa.insert(SESSIONS), [row])
        return token

    def _change(self, change: Any, name: str) -> None:
        with self._writing.begin() as connection:
            if connection.execute(change).rowcount == 0:
                raise self._unknown(name)
            connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.name == name))

    def _hashed(self, password: str) -> str:
        if not LEAST_CHARACTERS <= len(password) <= MOST_CHARACTERS:
            told = f"a password has {LEAST_CHARACTERS} to {MOST_CHARACTERS} characters, this one {len(password)}"
            raise AccessError("password", told, "four random words are easy to type with gloves")
        with self._hashing:
            return self._hasher.hash(password)

    def _right(self, kept: str, password: str) -> bool:
        try:
            with self._hashing:
                return self._hasher.verify(kept, password[:MOST_CHARACTERS])
        except (VerifyMismatchError, InvalidHashError):
            return False

    def _unknown(self, name: str) -> AccessError:
        return AccessError(name, "is no user of this hub", "see `lineside hub user list`")


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
