"""The hub's read API: typed, in pages, with errors by name, exports that are written while they are read."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from hub import export
from hub.dashboard import v1
from hub.dashboard.answers import ANSWERS
from hub.dashboard.gate import COOKIE
from hub.history import STREAM_ROWS, History, Place, Span
from hub.labels import Labels, Said
from hub.line import Hub
from hub.store import Store, database_url
from lineside import wire
from lineside.clock import NS, SystemClock
from lineside.messages import Manifest, Message, Score
from lineside.plant import BrokerProcess, PlantConfig
from tests.test_store import alarm, embeddings, health, kept, score


def plant(folder: Path) -> Hub:
    """A hub that was never started: all of its reading side works."""
    (folder / "secrets").mkdir()
    for user in ("hub", "operator"):
        (folder / "secrets" / f"{user}.password").write_text("x")
    config = PlantConfig(site="line1", devices=["press-3", "press-4"], broker=BrokerProcess(managed=False))
    return Hub(config, folder, SystemClock())


def manifest() -> Manifest:
    return Manifest(device="press-3", station="press", time_ns=4 * NS, agent="0.1.0", encoders={})


def of(device: str, message: Message) -> Message:
    return msgspec.structs.replace(message, device=device)


def fill(store: Store) -> None:
    """Seven scores, two of one time; three alarms, one without its raise, one labelled; one each of the rest."""
    said: list[Message] = [score(each) for each in (1, 2, 2, 3, 4, 5, 6)]
    said += [alarm("a", "raised", 3), alarm("b", "raised", 5), alarm("a", "cleared", 6), alarm("c", "cleared", 4)]
    said += [health(1.0), manifest(), embeddings(1, "camera", "microphone"), embeddings(2, "camera")]
    store.add([kept(message, seq) for seq, message in enumerate(said, start=1) if seq != 14])
    store.add([kept(said[13], 16), kept(of("press-4", alarm("a", "raised", 5)), 1), kept(of("press-4", score(9)), 2)])
    store.acknowledge("press-3", "a", "sato", 7)
    labels = Labels(store.engine)
    labels.add([Said(8, "mori", "press-3", "a", "not real"), Said(9, "sato", "press-3", "a", "real", "bearing")])
    labels.add([Said(8, "mori", "press-4", "a", "not real"), Said(9, "mori", "press-4", "a", "withdrawn")])


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    made = plant(tmp_path)
    fill(made.store)
    yield made
    made.store.close()


@pytest.fixture
def api(hub: Hub) -> TestClient:
    return TestClient(v1.application(hub), raise_server_exceptions=False)


def pages(api: TestClient, path: str, limit: int) -> list[list[Any]]:
    """Every page, by following `next`."""
    found, cursor = [], ""
    while True:
        answer = api.get(f"{path}&limit={limit}&cursor={cursor}")
        assert answer.status_code == 200, answer.text
        found.append(answer.json()["items"])
        if not (cursor := answer.json()["next"]):
            return found


def ids(items: list[dict[str, Any]]) -> list[int]:
    return [item["seq"] for item in items]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
def test_pages_put_together_are_everything_once_in_the_order_of_time(api: TestClient, limit: int) -> None:
    found = pages(api, "/scores?device=press-3", limit)
    assert ids(list(itertools.chain(*found))) == [1, 2, 3, 4, 5, 6, 7]  # 2 and 3 are of one time
    assert [len(page) for page in found[:-1]] == [limit] * (len(found) - 1)
    assert len(found) == -(-7 // limit)


def test_a_span_has_its_beginning_and_not_its_end(api: TestClient) -> None:
    found = api.get(f"/scores?device=press-3&since_ns={2 * NS}&until_ns={5 * NS}").json()
    assert [item["start_ns"] // NS for item in found["items"]] == [2, 2, 3, 4]


def test_what_comes_meanwhile_moves_no_page(hub: Hub, api: TestClient) -> None:
    first = api.get("/scores?device=press-3&limit=3").json()
    hub.store.add([kept(score(0), 99), kept(score(7), 100)])
    rest = api.get("/scores", params={"device": "press-3", "cursor": first["next"]}).json()
    assert ids(first["items"]) + ids(rest["items"]) == [1, 2, 3, 4, 5, 6, 7, 100]


def test_alarms_stand_where_they_were_raised_each_once_as_it_stands_now(api: TestClient) -> None:
    found = list(itertools.chain(*pages(api, "/alarms?since_ns=0", 1)))
    told = [(one["raised"]["device"], one["raised"]["key"], one["state"], one["acknowledged_by"]) for one in found]
    assert told == [
        ("press-3", "a", "CLEARED_ACK", "sato"),
        ("press-3", "c", "CLEARED_UNACK", ""),  # its raise was lost
        ("press-4", "a", "ACTIVE_UNACK", ""),
        ("press-3", "b", "ACTIVE_UNACK", ""),
    ]
    assert [one["cleared_ns"] // NS for one in found] == [6, 4, 0, 0]
    labels = [one["label"] and (one["label"]["word"], one["label"]["kind"], one["label"]["who"]) for one in found]
    assert labels == [("real", "bearing", "sato"), None, None, None]  # the last word counts, none after a withdrawal
    assert all(one["pictures"] == ["cam0"] and one["raised"]["pictures"] == {} for one in found)
    only = api.get(f"/alarms?device=press-3&since_ns={4 * NS}").json()["items"]
    assert [one["raised"]["key"] for one in only] == ["c", "b"]


def test_the_rest_of_what_is_stored(api: TestClient) -> None:
    status = api.get("/status").json()
    assert (status["site"], status["rows"]["scores"], status["ingest"]["received"]) == ("line1", 8, 0)
    devices = {one["device"]: one for one in api.get("/devices").json()["items"]}
    assert (devices["press-3"]["word"], devices["press-3"]["live"]) == ("offline", False)
    assert devices["press-3"]["health"]["state"] == "watching"
    assert devices["press-4"]["health"] is None
    assert ids(api.get("/health?device=press-3").json()["items"]) == [12]
    assert ids(api.get("/manifests?device=press-3").json()["items"]) == [13]
    assert pages(api, "/windows?device=press-3&modality=camera", 1) == [[NS], [2 * NS]]
    assert api.get("/windows?device=press-3&modality=microphone").json()["items"] == [NS]
    assert api.get("/gaps?device=press-3").json()["items"] == [{"epoch": 1, "first": 14, "last": 14}]


@pytest.mark.parametrize(
    ("path", "status", "name", "thing"),
    [
        ("/scores?device=press-3&limit=0", 422, "parameter", "limit"),
        ("/scores", 422, "parameter", "device"),
        ("/scores?device=press-3&cursor=5.1.x", 422, "parameter", "cursor"),
        ("/export/alarms?form=xls", 422, "parameter", "form"),
        ("/secrets", 404, "no-such-path", "/secrets"),
    ],
)
def test_a_refusal_has_a_name_and_a_thing(api: TestClient, path: str, status: int, name: str, thing: str) -> None:
    answer = api.get(path)
    assert (answer.status_code, answer.json()["error"], answer.json()["thing"]) == (status, name, thing)
    assert set(answer.json()) == {"error", "thing", "reason", "mend"}


def test_only_reading_is_allowed(api: TestClient) -> None:
    answer = api.post("/scores?device=press-3")
    assert (answer.status_code, answer.json()["error"], answer.headers["allow"]) == (405, "no-such-method", "GET")


def test_a_database_that_is_away_is_told(hub: Hub, api: TestClient) -> None:
    with hub.store.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE scores"))
    answer = api.get("/scores?device=press-3")
    assert (answer.status_code, answer.json()["error"]) == (503, "store")
    assert "scores" in answer.json()["reason"]


def test_csv_has_a_row_a_message_with_tables_as_json(api: TestClient) -> None:
    answer = api.get(f"/export/scores?device=press-3&since_ns={4 * NS}")
    assert answer.headers["content-disposition"] == 'attachment; filename="scores-press-3.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["device"], row["seq"], row["start_ns"]) for row in rows] == [
        ("press-3", "5", str(4 * NS)),
        ("press-3", "6", str(5 * NS)),
        ("press-3", "7", str(6 * NS)),
    ]
    assert rows[0]["start_utc"] == "1970-01-01T00:00:04.000000Z"  # a spreadsheet rounds nineteen digits
    assert json.loads(rows[0]["contributions"]) == {"cam0": 1.0}
    assert (rows[0]["p_value"], rows[0]["p_upper"]) == ("0.5", "")
    alarms = list(csv.DictReader(io.StringIO(api.get("/export/alarms").text)))
    names = ("device", "key", "state", "label", "fault", "labelled_by")
    assert [tuple(row[name] for name in names) for row in alarms][:2] == [
        ("press-3", "a", "CLEARED_ACK", "real", "bearing", "sato"),
        ("press-3", "c", "CLEARED_UNACK", "", "", ""),
    ]


def test_parquet_gives_back_every_field(api: TestClient) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(io.BytesIO(api.get("/export/scores?device=press-3&form=parquet").content))
    assert set(table.column_names) == {field.name for field in msgspec.structs.fields(Score)}
    first = {**table.to_pylist()[0]}
    maps = {name: dict(cell) if isinstance(cell, list) else cell for name, cell in first.items()}
    assert msgspec.convert(maps, Score) == wire.stamped(score(1), 1, 1)
    alarms = parquet.read_table(io.BytesIO(api.get("/export/alarms?form=parquet").content)).to_pylist()
    assert tuple(alarms[0][name] for name in ("key", "state", "fault")) == ("a", "CLEARED_ACK", "bearing")


def test_without_pyarrow_parquet_is_refused_by_name(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    answer = api.get("/export/alarms?form=parquet")
    assert (answer.status_code, answer.json()["error"]) == (501, "not-installed")
    assert "lineside[export-parquet]" in answer.json()["mend"]
    assert api.get("/export/alarms").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize(("form", "most"), [("csv", export.CSV_ROWS), ("parquet", export.PARQUET_ROWS)])
def test_an_export_reads_no_more_than_it_writes(form: export.Form, most: int) -> None:
    taken = itertools.count()
    source = (score(next(taken)) for _ in range(4 * most))
    pieces = export.write("score", form, source)
    assert next(taken) == 0  # nothing before somebody reads
    sizes = [len(next(pieces)) for _ in range(2)]
    assert most <= next(taken) <= 2 * most + 2
    assert sum(len(piece) for piece in pieces) + sum(sizes) > 4 * most


def test_a_long_history_comes_whole_in_pages(store: Store) -> None:
    rows = 2 * STREAM_ROWS + 5
    store.add([kept(score(seq // 3), seq) for seq in range(1, rows + 1)])
    store.add([kept(alarm(f"k{seq}", "raised", seq // 3), seq, epoch=2) for seq in range(1, rows + 1)])
    history = History(store.engine)
    assert [each.seq for each in history.every("score", Span("press-3"))] == list(range(1, rows + 1))
    assert [each.raised.seq for each in history.every("alarm", Span())] == list(range(1, rows + 1))


def test_a_page_reads_no_more_than_its_rows(tmp_path: Path) -> None:
    """By SQLite's own plan: scores and health of a device are found and ordered by an index on the time."""
    store = Store(database_url("sqlite:///hub.db", tmp_path))
    span = Span("press-3", 5, 9, Place(6, 1, 2, "press-3"))
    asked: list[tuple[str, Any]] = []
    sa.event.listen(store.engine, "before_cursor_execute", lambda *told: asked.append((told[2], told[3])))
    for kind in ("score", "health", "manifest"):
        History(store.engine).page(kind, span, 10)
    History(store.engine).windows("camera", span, 10)
    with store.engine.connect() as connection:
        plans = [
            connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values).all()
            for text, values in asked
            if text.startswith("SELECT")
        ]
    store.close()
    for plan in plans:
        steps = [row[3] for row in plan]
        assert "_by_time (device=? AND " in steps[0], steps
        assert not any("SCAN" in step or step == "USE TEMP B-TREE FOR ORDER BY" for step in steps), steps


def test_the_document_names_every_type_once_and_refers_to_nothing_else(api: TestClient) -> None:
    document = api.get("/openapi.json").json()
    components = document["components"]["schemas"]
    assert set(ANSWERS) <= set(components)
    named = {each.rpartition("/")[2] for each in _refs(document)}
    assert named <= set(components)
    assert components["Score"]["properties"]["p_value"] == {"type": "number", "minimum": 0.0, "maximum": 1.0}
    for path in document["paths"].values():
        assert {"200", "401", "503"} <= set(path["get"]["responses"])


def test_the_document_says_how_to_be_let_in_where_a_login_is_asked_for(hub: Hub, api: TestClient) -> None:
    assert "security" not in api.get("/openapi.json").json()
    login = msgspec.structs.replace(hub.plant.hub, login=True)
    hub.plant = msgspec.structs.replace(hub.plant, hub=login)
    document = TestClient(v1.application(hub)).get("/openapi.json").json()
    assert document["security"] == [{"token": []}, {"session": []}]
    doors = document["components"]["securitySchemes"]
    assert (doors["token"]["scheme"], doors["session"]["name"]) == ("bearer", COOKIE)


def _refs(part: Any) -> Iterator[str]:
    for key, value in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
        if key == "$ref":
            yield value
        else:
            yield from _refs(value)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_schemathesis_finds_no_answer_that_is_not_as_documented(hub: Hub, mode: str) -> None:
    import schemathesis
    from hypothesis import HealthCheck, given, settings

    schema = schemathesis.openapi.from_asgi("/openapi.json", v1.application(hub))
    asked: set[str] = set()
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=25, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
        def holds(case: Any) -> None:
            asked.add(case.path)
            case.call_and_validate()

        if operation.query or mode == "positive":  # what takes nothing cannot be asked wrongly
            holds()
    assert len(asked) == (10 if mode == "positive" else 8)
