"""How a store comes from any older schema to today's: Alembic, a step a file in `versions`."""

from __future__ import annotations

import logging
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from lineside.errors import ConfigError

LOG = logging.getLogger("hub.migrations")
FOLDER = Path(__file__).parent


def upgrade(connection: sa.Connection, place: str) -> bool:
    """Bring the schema of a database up to date within the caller's transaction; whether anything was to be done.

    An empty database is made, one from before there were versions is taken as the first. Raises ConfigError for a
    database of a schema that this hub does not know: a newer hub made it.
    """
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    script = ScriptDirectory.from_config(config)
    now = MigrationContext.configure(connection).get_current_revision()
    if now == script.get_current_head():
        return False
    if now is not None and now not in {step.revision for step in script.walk_revisions()}:
        mend = "update the hub, or restore the backup that was made before the update"
        raise ConfigError("hub.database", f"{place} was made by a newer lineside (schema {now})", mend)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    LOG.info("the schema of %s is now %s (was %s)", place, script.get_current_head(), now or "none")
    return True
