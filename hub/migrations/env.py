"""What Alembic runs for each upgrade; the connection and its transaction are hub.migrations.upgrade's."""

from alembic import context

from hub.tables import METADATA

# `render_as_batch`: SQLite changes a column only by copying its table.
context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, render_as_batch=True)
context.run_migrations()
