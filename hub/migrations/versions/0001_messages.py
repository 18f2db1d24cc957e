"""The schema of the hubs that kept no version: each stored message, and who acknowledged what.

`if_not_exists`, because such a database has these tables, the older ones not all of them.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001", None

STATION = sa.Column("station", sa.String, nullable=False)
TABLES: dict[str, list[tuple[str, type[sa.types.TypeEngine[Any]]]]] = {
    "embeddings": [("station", sa.String), ("start_ns", sa.BigInteger), ("modalities", sa.String)],
    "scores": [("station", sa.String), ("start_ns", sa.BigInteger), ("p_value", sa.Float)],
    "alarms": [("station", sa.String), ("key", sa.String), ("state", sa.String), ("time_ns", sa.BigInteger)],
    "health": [("station", sa.String), ("time_ns", sa.BigInteger)],
    "manifests": [("station", sa.String), ("time_ns", sa.BigInteger)],
    "tombstones": [("time_ns", sa.BigInteger)],
}
INDEXES = {
    "embeddings_by_time": ("embeddings", ["device", "start_ns"]),
    "scores_by_time": ("scores", ["device", "start_ns"]),
    "scores_by_arrival": ("scores", ["device", "received_ns"]),
    "manifests_by_time": ("manifests", ["device", "time_ns"]),
    "alarms_by_key": ("alarms", ["device", "key"]),
}


def upgrade() -> None:
    for name, columns in TABLES.items():
        op.create_table(
            name,
            sa.Column("device", sa.String, primary_key=True),
            sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
            sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
            sa.Column("received_ns", sa.BigInteger, nullable=False),
            *(sa.Column(column, kind, nullable=False) for column, kind in columns),
            sa.Column("body", sa.LargeBinary, nullable=False),
            if_not_exists=True,
        )
    op.create_table(
        "acknowledgements",
        sa.Column("device", sa.String, primary_key=True),
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("who", sa.String, nullable=False),
        sa.Column("time_ns", sa.BigInteger, nullable=False),
        if_not_exists=True,
    )
    for name, (table, columns_) in INDEXES.items():
        op.create_index(name, table, columns_, if_not_exists=True)
