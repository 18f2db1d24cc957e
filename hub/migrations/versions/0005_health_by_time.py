"""What a device said of itself, by the time of day."""

from alembic import op

revision, down_revision = "0005", "0004"


def upgrade() -> None:
    op.create_index("health_by_time", "health", ["device", "time_ns"], if_not_exists=True)
