"""Who may enter, who is in, and who did what."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003", "0002"


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("name", sa.String, primary_key=True),
        _column("role", sa.String),
        _column("password", sa.String),
        _column("since_ns", sa.BigInteger),
    )
    op.create_table(
        "sessions",
        sa.Column("token_sha256", sa.String, primary_key=True),
        _column("name", sa.String),
        _column("program", sa.Boolean),
        _column("since_ns", sa.BigInteger),
        _column("seen_ns", sa.BigInteger),
    )
    op.create_table(
        "audit",
        sa.Column("number", sa.Integer, primary_key=True),
        _column("time_ns", sa.BigInteger),
        *(_column(name, sa.String) for name in ("who", "action", "subject", "outcome")),
    )
    op.create_index("audit_by_time", "audit", ["time_ns"])


def _column(name: str, kind: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False)
