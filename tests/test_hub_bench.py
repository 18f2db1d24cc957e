"""The hub's bench, small: each part measures what it says, and a missed goal is exit code 6."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from hub.__main__ import app
from hub.bench import backlog, kills, plans, publisher, rate, report
from lineside import wire
from lineside.clock import SystemClock
from lineside.errors import GateError

CLOCK = SystemClock()


def quiet(_text: str) -> None:
    """No progress."""


def test_a_bench_message_is_a_score_of_600_bytes() -> None:
    payload = publisher.template("d0") % {b"seq": 7, b"start": 10**18, b"end": 10**18 + 10**9}
    assert abs(len(payload) - publisher.MESSAGE_BYTES) <= 10
    said = wire.decode("score", payload)
    assert (said.device, said.seq, said.start_ns, said.end_ns) == ("d0", 7, 10**18, 10**18 + 10**9)


def test_no_query_of_the_dashboard_reads_a_whole_growing_table(tmp_path: Path) -> None:
    found = plans.measure(tmp_path)
    assert {name: steps for name, plan in found.items() if (steps := plans.scans(plan))} == {}
    assert all(plan for plan in found.values())
    assert any("scores_by_time" in step for step in found["a station's scores"])


def test_a_missed_goal_is_told() -> None:
    slow = {"rows": 9, "drained_per_s": 10, "live_per_s": 10, "times_live": 1.0, "live_p99_ms": 1.0, "live_p50_ms": 1.0}
    lines = report.table({"backlog": {**slow, "lost": 0}})
    assert [line.held for line in lines] == [False, True, True]
    assert "**no**" in report.text(lines)


def test_the_command_ends_with_6_when_a_goal_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = CliRunner()
    well = run.invoke(app, ["bench", "--only", "plans", "--json"])
    assert well.exit_code == 0
    assert set(json.loads(well.stdout)["plans"]) == set(plans.QUERIES)
    monkeypatch.setitem(plans.QUERIES, "all", lambda store: store._all(sa.text("SELECT body FROM scores")))
    ill = run.invoke(app, ["bench", "--only", "plans"])
    assert isinstance(ill.exception, GateError)
    assert ill.exception.exit_code == 6
    assert "all: SCAN scores" in ill.stdout


@pytest.mark.slow
def test_rate_and_backlog_lose_and_repeat_nothing(tmp_path: Path) -> None:
    found = rate.measure(4000, 1, tmp_path / "rate", CLOCK, quiet)
    assert (found.lost, found.stored_twice) == (0, 0)
    assert min(found.hub_per_s, found.plain_per_s, found.hub_us, found.plain_us) > 0
    drained = backlog.measure(4000, tmp_path / "backlog", CLOCK, quiet)
    assert (drained.rows, drained.lost) == (4000, 0)
    assert 0 < drained.live_p50_ms <= drained.live_p99_ms


@pytest.mark.slow
def test_a_hub_that_is_killed_under_load_keeps_what_it_acknowledged_and_keeps_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kills, "LIVES_S", (1.3, 2.0))  # each hub hears what is sent again after a second
    found = kills.measure(5, tmp_path, CLOCK, quiet)
    assert found.acknowledged > 500
    assert found.resent > 0  # the kills did cost what was on its way
    assert (found.lost, found.stored_twice, found.integrity) == (0, 0, "ok")
