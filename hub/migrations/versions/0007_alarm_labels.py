"""What people said of alarms: real, not real, which fault."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0007", "0006"


def upgrade() -> None:
    op.create_table(
        "alarm_labels",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("time_ns", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.String, nullable=False) for name in ("who", "device", "key", "word", "kind", "why")),
    )
    op.create_index("alarm_labels_by_key", "alarm_labels", ["device", "key"])
