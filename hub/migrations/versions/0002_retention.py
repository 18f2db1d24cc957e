"""What is kept no longer, what is left of it, and what would need a count or a scan of everything."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"

COUNTED = ("embeddings", "scores", "alarms", "health", "manifests", "tombstones", "acknowledgements")


def upgrade() -> None:
    op.create_table("totals", _text("name"), _number("added"), _number("removed"))
    op.create_table("open_alarms", _text("device"), _text("key"))
    op.create_table("retired", _text("device"), _number("epoch", key=True), _number("upto"))
    op.create_table("missing", _text("device"), _number("epoch", key=True), _number("first", key=True), _number("last"))
    op.create_table(
        "score_minutes",
        _text("device"),
        _number("start_ns", key=True),
        _text("station"),
        _number("scores"),
        sa.Column("p_value", sa.Float, nullable=False),
        sa.Column("evidence", sa.Float, nullable=False),
        sa.Column("contributions", sa.LargeBinary, nullable=False),
    )
    op.create_index("alarms_by_time", "alarms", ["time_ns"])
    op.create_index("acknowledgements_by_time", "acknowledgements", ["time_ns"])
    for table in COUNTED:
        op.execute(f"INSERT INTO totals SELECT '{table}', count(*), 0 FROM {table}")
    op.execute(
        "INSERT INTO open_alarms SELECT DISTINCT device, key FROM alarms AS a WHERE NOT EXISTS "
        "(SELECT 1 FROM alarms AS c WHERE c.device = a.device AND c.key = a.key AND c.state = 'cleared') OR NOT EXISTS "
        "(SELECT 1 FROM acknowledgements AS k WHERE k.device = a.device AND k.key = a.key)"
    )


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String, primary_key=True)


def _number(name: str, key: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, primary_key=key, autoincrement=False, nullable=False)
