"""Why a database did not do what it was asked, in one word or its own."""

from __future__ import annotations

from typing import Literal

from sqlalchemy.exc import SQLAlchemyError

Trouble = Literal["locked", "full", "unreachable", "failed"]
# SQLite's own sentences (sqlite3_errstr) and PostgreSQL's SQLSTATE classes (its manual, appendix A).
SENTENCES: dict[str, Trouble] = {
    "database is locked": "locked",
    "database table is locked": "locked",
    "database or disk is full": "full",
    "unable to open database file": "unreachable",
    "disk I/O error": "failed",
}
STATES: dict[str, Trouble] = {
    "55P03": "locked",
    "40P01": "locked",
    "53100": "full",
    "08": "unreachable",
    "57P": "unreachable",
}


def trouble(error: SQLAlchemyError) -> Trouble:
    """The reason in a word.

    >>> from sqlalchemy.exc import OperationalError
    >>> trouble(OperationalError("INSERT", {}, OSError("database is locked")))
    'locked'
    """
    cause = getattr(error, "orig", None)
    state = getattr(cause, "sqlstate", None) or ""
    by_state = [word for start, word in STATES.items() if state.startswith(start)]
    by_sentence = [word for sentence, word in SENTENCES.items() if sentence in str(cause)]
    return next(iter(by_state + by_sentence), "failed")


def reason(error: SQLAlchemyError) -> str:
    """The first line of what the database itself said, without the statement that it was asked.

    >>> from sqlalchemy.exc import OperationalError
    >>> reason(OperationalError("INSERT", {}, OSError("database is locked")))
    'database is locked'
    """
    return str(getattr(error, "orig", error)).strip().splitlines()[0]
