"""A new store, one from before there were versions, and one of a newer hub."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

import hub
from hub.store import Store, database_url
from hub.tables import METADATA
from lineside.errors import ConfigError
from tests import line_postgres
from tests.test_store import alarm, kept, score

OLD = ("embeddings", "scores", "alarms", "health", "tombstones", "acknowledgements")  # manifests came later


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with line_postgres.server() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.URL]:
    text = "sqlite:///hub.db" if request.param == "sqlite" else request.getfixturevalue("postgres")
    yield database_url(text, tmp_path)
    if request.param == "postgresql":
        line_postgres.empty(text)


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


def test_the_migrations_give_exactly_the_declared_tables(url: sa.URL) -> None:
    Store(url).close()
    assert difference(url) == []
    Store(url).close()  # and nothing is to be done a second time
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE missing"))
    engine.dispose()
    assert len(difference(url)) == 1  # the comparison sees it


def test_a_store_without_a_version_is_brought_up_to_date_with_its_rows(url: sa.URL) -> None:
    engine = sa.create_engine(url)
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
    store = Store(url)
    assert difference(url) == []
    counts = {name: number for name, number in store.counts().items() if number}
    assert counts == {"scores": 1, "alarms": 4, "acknowledgements": 2}
    assert {each.key for each in store.alarms(since_ns=10**18)} == {"open", "unseen"}
    assert store.add(rows) == 0
    store.close()


def test_a_store_of_a_newer_hub_is_refused_by_name_and_left_alone(url: sa.URL) -> None:
    store = Store(url)
    store.add([kept(score(1), 1)])
    store.close()
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match=r"made by a newer lineside \(schema 9999\); update the hub, or restore"):
        Store(url)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM scores")).scalar() == 1
    engine.dispose()
