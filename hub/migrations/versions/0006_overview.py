"""Minutes know the limit and the agreements; scores that are kept have minutes too, for the charts of long spans."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0006", "0005"


def upgrade() -> None:
    op.add_column("score_minutes", sa.Column("p_limit", sa.Float))
    op.add_column("score_minutes", sa.Column("agreements", sa.LargeBinary))
    op.create_table(
        "score_overview",
        sa.Column("device", sa.String, primary_key=True),
        sa.Column("start_ns", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("station", sa.String, primary_key=True),
        sa.Column("scores", sa.BigInteger, nullable=False),
        sa.Column("p_value", sa.Float, nullable=False),
        sa.Column("evidence", sa.Float, nullable=False),
        sa.Column("contributions", sa.LargeBinary, nullable=False),
        sa.Column("p_limit", sa.Float),
        sa.Column("agreements", sa.LargeBinary),
    )
