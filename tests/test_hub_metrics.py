"""The hub's /metrics, and the Grafana dashboard that reads them: hub.metrics, hub/grafana."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from hub import metrics
from hub.ingest import Blamed, Counts, Presence
from hub.line import Hub
from lineside.clock import NS
from tests.test_api import plant
from tests.test_store import alarm, health, kept, score

DASHBOARD = Path(metrics.__file__).parent / "grafana" / "lineside.json"
UNITS = ("seconds", "bytes", "messages", "rows", "nats")
PANELS = {"stat", "timeseries"}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """press-3 is live, press-4 was never heard."""
    made = plant(tmp_path)
    now_ns = made.clock.now_ns()
    live = msgspec.structs.replace(score(0), start_ns=now_ns - NS, end_ns=now_ns, evidence=4.5)
    well = msgspec.structs.replace(health(1.0), time_ns=now_ns, outbox_messages=3)
    made.ingest.presence["press-3"] = Presence("online", now_ns)
    made.keeper.add([kept(live, 1, received_ns=now_ns), kept(well, 2), kept(alarm("a", "raised", 3), 3)])
    made.ingest.counts.stored = 3
    made.ingest.blamed.refused.update({"press-3": 2, "nobody-we-know": 1})  # whose names are no labels
    made.store.acknowledge("press-3", "a", "sato", 5)
    yield made
    made.store.close()


@pytest.fixture
def page(hub: Hub) -> TestClient:
    app = FastAPI()
    metrics.mount(app, hub)
    return TestClient(app)


def families(page: TestClient) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(page.get("/metrics").text)}


def values(family: Metric, label: str) -> dict[str, float]:
    return {sample.labels[label]: sample.value for sample in family.samples}


def test_ingest_commits_devices_and_alarms_are_told(hub: Hub, page: TestClient) -> None:
    found = families(page)
    assert found["lineside_hub_stored_messages"].samples[0].value == 3
    assert found["lineside_hub_stored_messages"].type == "counter"
    assert found["lineside_hub_queue_messages"].samples[0].value == 0
    assert values(found["lineside_hub_rows"], "table")["scores"] == 1
    assert {name: count for name, count in values(found["lineside_hub_devices"], "state").items() if count} == {
        "alarm": 1,
        "offline": 1,
    }
    assert values(found["lineside_hub_device_up"], "device") == {"press-3": 1, "press-4": 0}
    assert values(found["lineside_hub_score_nats"], "device") == {"press-3": 4.5}
    assert values(found["lineside_hub_outbox_messages"], "device") == {"press-3": 3}
    assert values(found["lineside_hub_device_refused_messages"], "device") == {"press-3": 2, "press-4": 0}
    assert values(found["lineside_hub_alarms"], "state") == {
        "ACTIVE_UNACK": 0,
        "ACTIVE_ACK": 1,
        "CLEARED_UNACK": 0,
        "CLEARED_ACK": 0,
    }
    assert values(found["lineside_hub_alarms_active"], "kind") == {"anomaly": 1, "drift": 0, "sensor": 0, "device": 0}
    took = {sample.name: sample.value for sample in found["lineside_hub_commit_duration_seconds"].samples}
    assert took["lineside_hub_commit_duration_seconds_count"] == 1
    assert 0 < took["lineside_hub_commit_duration_seconds_sum"] < 60


def test_what_is_not_live_has_no_value(hub: Hub, page: TestClient) -> None:
    hub.ingest.presence["press-3"] = Presence("offline", hub.clock.now_ns())
    found = families(page)
    assert values(found["lineside_hub_device_up"], "device") == {"press-3": 0, "press-4": 0}
    assert "lineside_hub_score_nats" not in found or not found["lineside_hub_score_nats"].samples
    assert values(found["lineside_hub_last_score_timestamp_seconds"], "device")["press-3"] > 0


def test_a_commit_that_fails_took_its_time_too(hub: Hub, page: TestClient) -> None:
    with pytest.raises(sa.exc.SQLAlchemyError):
        hub.keeper.add([dataclasses.replace(kept(score(1), 9), values={**kept(score(1), 9).values, "start_ns": None})])
    took = {sample.name: sample.value for sample in families(page)["lineside_hub_commit_duration_seconds"].samples}
    assert took["lineside_hub_commit_duration_seconds_count"] == 2


def test_every_count_of_ingest_is_told(page: TestClient) -> None:
    assert set(metrics.COUNTS) == {field.name for field in dataclasses.fields(Counts)}
    assert set(metrics.BLAMED) == {field.name for field in dataclasses.fields(Blamed)}
    told = {f"lineside_hub_{name}_messages" for name in metrics.COUNTS}
    assert told | {f"lineside_hub_device_{name}_messages" for name in metrics.BLAMED} <= set(families(page))


def test_names_keep_to_prometheus_rules(page: TestClient) -> None:
    """Prefix, base units, `_total` for counters alone, a help text, labels whose values are few and known."""
    found = [family for family in families(page).values() if not family.name.startswith("process_")]
    assert len(found) > 14
    for family in found:
        assert re.fullmatch(r"lineside_hub_[a-z0-9]+(_[a-z0-9]+)*", family.name), family.name
        assert family.documentation.endswith("."), family.name
        assert not re.search(r"_(ms|milliseconds|minutes|hours|mb|kb|percent|ns)(_|$)", family.name), family.name
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total"), sample.name
            assert set(sample.labels) <= {"device", "state", "kind", "table", "le", "version"}
        if family.type in ("counter", "histogram") and not family.name.endswith("_restarts"):
            assert family.name.endswith(UNITS), family.name


def test_openmetrics_is_given_to_whom_asks_for_it(page: TestClient) -> None:
    answer = page.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert "lineside_hub_build" in {family.name for family in openmetrics.text_string_to_metric_families(answer.text)}


def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text()))


def expressions(board: dict[str, Any]) -> list[str]:
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return asked + [each["query"] for each in board["templating"]["list"] if each["type"] == "query"]


def test_grafana_reads_only_what_there_is(page: TestClient) -> None:
    samples = [sample for family in families(page).values() for sample in family.samples]
    labels = {name: {*sample.labels} for sample in samples for name in [sample.name]}
    for text in expressions(dashboard()):
        names = re.findall(r"\b(?:lineside|process)_[a-z0-9_]+", text)
        assert names, text
        assert set(names) <= set(labels), text
        used = {*re.findall(r"([a-z_]+)=~?\"", text), *re.findall(r"by \(([a-z_]+)\)", text)}
        assert used <= {"job"} | set().union(*(labels[name] for name in names)), text
        assert text.count("(") == text.count(")")


def test_grafana_can_import_it() -> None:
    """What Grafana's import asks of a dashboard: an id and a title, panels of known types that do not overlap, targets
    with letters, a data source that the importing person chooses."""
    board = dashboard()
    assert (board["uid"], board["title"]) == ("lineside-hub", "lineside hub")
    assert len(board["uid"]) <= 40
    assert 30 < board["schemaVersion"] < 100
    assert "id" not in board  # an id would overwrite another dashboard
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert {each["name"]: each["type"] for each in board["templating"]["list"]} == {
        "datasource": "datasource",
        "job": "query",
        "device": "query",
    }
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["type"] in PANELS
        assert panel["datasource"] == chosen
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFG"[: len(panel["targets"])])
        assert all(target["datasource"] == chosen for target in panel["targets"])
        place = panel["gridPos"]
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not own & cells, panel["title"]
        cells |= own
