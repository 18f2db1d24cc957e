"""A new store, one from before there were versions, and one of a newer hub."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

import hub
from hub.store import Store
from hub.tables import METADATA
from lineside.errors import ConfigError
from tests.test_store import alarm, kept, score

OLD = ("embeddings", "scores", "alarms", "health", "tombstones", "acknowledgements")  # manifests came later


def difference(url: sa.URL) -> list[object]:
    """Between what stands in a database and the tables that all rooms of the hub declare."""
    for module in pkgutil.walk_packages(hub.__path__, "hub."):
        if not module.name.startswith("hub.migrations.") and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), METADATA)
    engine.dispose()
    return found


def test_the_migrations_give_exactly_the_declared_tables(database: sa.URL) -> None:
    Store(database).close()
    assert difference(database) == []
    Store(database).close()  # and nothing is to be done a second time
    engine = sa.create_engine(database)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE missing"))
    engine.dispose()
    assert len(difference(database)) == 1  # the comparison sees it


def test_a_store_without_a_version_is_brought_up_to_date_with_its_rows(database: sa.URL) -> None:
    engine = sa.create_engine(database)
    METADATA.create_all(engine, tables=[METADATA.tables[name] for name in OLD])
    said = [("open", "raised", 1), ("done", "raised", 2), ("done", "cleared", 3), ("unseen", "raised", 4)]
    rows = [kept(score(1), 1), *(kept(alarm(*each), seq) for seq, each in enumerate(said, start=2))]
    with engine.begin() as connection:
        for index in ("alarms_by_time", "acknowledgements_by_time"):
            connection.execute(sa.text(f"DROP INDEX {index}"))
        for row in rows:
            connection.execute(sa.insert(METADATA.tables["alarms" if row.kind == "alarm" else "scores"]), [row.values])
        seen = [{"device": "press-3", "key": key, "who": "Sato", "time_ns": 5} for key in ("open", "done")]
        connection.execute(sa.insert(METADATA.tables["acknowledgements"]), seen)
    engine.dispose()
    store = Store(database)
    assert difference(database) == []
    counts = {name: number for name, number in store.counts().items() if number}
    assert counts == {"scores": 1, "alarms": 4, "acknowledgements": 2}
    assert {each.key for each in store.alarms(since_ns=10**18)} == {"open", "unseen"}
    assert store.add(rows) == 0
    store.close()


def test_a_store_of_a_newer_hub_is_refused_by_name_and_left_alone(database: sa.URL) -> None:
    store = Store(database)
    store.add([kept(score(1), 1)])
    store.close()
    engine = sa.create_engine(database)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match=r"made by a newer lineside \(schema 9999\); update the hub, or restore"):
        Store(database)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM scores")).scalar() == 1
    engine.dispose()
