"""A device tells in good time that what it knows of the repository ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge import freshness
from lineside.clock import NS, SystemClock
from tests.test_updater import PLANT, Bench

DAY_NS = 86_400 * NS


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.publish("camera", 1)
    assert made.update() == 1
    yield made
    made.server.close()


def told(bench: Bench, days: float) -> str:
    now_ns = SystemClock().now_ns() + round(days * DAY_NS)
    return freshness.problem(bench.folder / "state" / "repository", PLANT.modalities, now_ns)


def test_a_device_without_news_warns_at_half_and_alarms_near_the_end(bench: Bench) -> None:
    assert told(bench, 0) == told(bench, 3.4) == ""
    assert told(bench, 3.6).startswith("repository: warning, timestamp as last seen expires in 3.4 days")
    assert told(bench, 6.5).startswith("repository: alarm, timestamp as last seen expires in 0.5 days")
    assert "timestamp as last seen expired 1.0 days ago; judging goes on, only updates stop" in told(bench, 8)
    assert "snapshot as last seen expires" not in told(bench, 8)  # the soonest


def test_news_end_it(bench: Bench) -> None:
    bench.repository(SystemClock().now_ns() + 5 * DAY_NS).refresh()
    assert "warning" in told(bench, 5)
    bench.updater.fetch("camera")
    assert told(bench, 5) == ""


def test_a_device_without_repository_and_damaged_metadata_tell_nothing(bench: Bench, tmp_path: Path) -> None:
    assert freshness.problem(tmp_path / "nowhere", PLANT.modalities, SystemClock().now_ns()) == ""
    for file in (bench.folder / "state" / "repository").glob("*.json"):
        file.write_bytes(b"{}")
    assert told(bench, 100) == ""


def test_the_plants_offline_roles_are_watched_too(bench: Bench) -> None:
    bench.repository(SystemClock().now_ns() + 180 * DAY_NS).roles.commit({})
    bench.updater.fetch("camera")
    assert told(bench, 180) == ""
    assert "as last seen expires in 182." in told(bench, 183)
