"""What was done about alarms: acknowledgements, silences, messages to people."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0004", "0003"


def upgrade() -> None:
    op.create_table(
        "alarm_actions",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("time_ns", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.String, nullable=False) for name in ("who", "what", "device", "subject", "why")),
        sa.Column("until_ns", sa.BigInteger, nullable=False),
    )
    op.create_index("alarm_actions_by_time", "alarm_actions", ["time_ns"])
    op.create_index("alarm_actions_by_end", "alarm_actions", ["until_ns"])
    op.create_index("alarm_actions_by_subject", "alarm_actions", ["device", "subject"])
