"""The store on SQLite, and on a real PostgreSQL: each message once, gaps told, backups whole."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from hub.bench import store_rate
from hub.store import PRAGMAS, Store, database_url
from hub.tables import KEPT, Row, row
from lineside import wire
from lineside.clock import NS, SystemClock
from lineside.errors import ConfigError, WireError
from lineside.lock import only_one
from lineside.messages import Alarm, Embedding, Embeddings, Health, Message, Score, Tombstone
from lineside.topics import TOPICS


def embeddings(start_s: int, *modalities: str, device: str = "press-3") -> Embeddings:
    vectors = [Embedding(f"{name}0", name, "v1", "space", b"\0\0") for name in modalities]
    return Embeddings(device=device, station="p", start_ns=start_s * NS, end_ns=(start_s + 1) * NS, embeddings=vectors)


def score(start_s: int, p_value: float = 0.5) -> Score:
    return Score(
        device="press-3",
        station="press",
        start_ns=start_s * NS,
        end_ns=(start_s + 1) * NS,
        evidence=1.0,
        p_value=p_value,
        limit=0.01,
        contributions={"cam0": 1.0},
        without={"cam0": 1.0},
        agreements={},
        modalities={"cam0": "camera"},
        absent={},
        versions={},
        skew_ms=0.5,
    )


def alarm(key: str, state: str, time_s: int) -> Alarm:
    return Alarm(
        device="press-3",
        station="press",
        key=key,
        kind="anomaly",
        state=state,
        subject="press",
        top_sensor="cam0",
        top_modality="camera",
        onset_ns=0,
        time_ns=time_s * NS,
        p_value=0.001,
        evidence=6.9,
        contributions={},
        versions={},
        limits={},
        text="",
        pictures={"cam0": b"\xff\xd8"},
    )


def health(uptime_s: float) -> Health:
    return Health(
        device="press-3",
        station="press",
        agent="0.1.0",
        time_ns=1,
        uptime_s=uptime_s,
        state="watching",
        sensors={},
        encoders={},
        windows=0,
        moments=0,
        scores=0,
        outbox_messages=0,
        outbox_bytes=0,
        dropped_messages=0,
        problems=[],
    )


def kept(message: Message, seq: int, epoch: int = 1, received_ns: int = 7) -> Row:
    stamped = wire.stamped(message, epoch, seq)
    return row(wire.kind_of(stamped), stamped, wire.encode(stamped), received_ns)


def test_every_stored_kind_of_the_topic_table_has_a_table() -> None:
    assert set(KEPT) == {kind for kind, topic in TOPICS.items() if topic.stored}
    assert all({"device", "epoch", "seq"} == set(k.table.primary_key.columns.keys()) for k in KEPT.values())


def test_each_message_is_stored_once_and_comes_back_as_it_was(store: Store) -> None:
    said = [score(1), score(2), embeddings(1, "camera"), alarm("k", "raised", 3), health(5.0)]
    rows = [kept(message, seq) for seq, message in enumerate(said, start=1)]
    assert store.add(rows + rows[:1]) == 5
    assert store.add(rows) == 0
    assert store.add([*rows, kept(score(3), 1, epoch=2)]) == 1  # the same number of another epoch is another message
    assert store.scores("press-3", limit=2) == [wire.stamped(score(2), 1, 2), wire.stamped(score(3), 2, 1)]
    assert store.alarms() == [wire.stamped(alarm("k", "raised", 3), 1, 4)]
    counts = {"embeddings": 1, "scores": 3, "alarms": 1, "health": 1}
    assert store.counts() == {**counts, "manifests": 0, "tombstones": 0, "acknowledgements": 0}


def test_a_batch_is_committed_whole_or_not_at_all(store: Store) -> None:
    bad = Row("score", {**kept(score(2), 2).values, "start_ns": None})
    with pytest.raises(sa.exc.SQLAlchemyError):
        store.add([kept(alarm("k", "raised", 1), 1), bad])
    assert sum(store.counts().values()) == 0


def test_windows_of_one_modality(store: Store) -> None:
    store.add([kept(embeddings(t, *(["camera", "microphone"] if t % 2 else ["camera"])), t) for t in range(1, 7)])
    store.add([kept(embeddings(9, "microphone", device="press-4"), 1)])
    assert [t // NS for t in store.windows("press-3", "microphone", 0, 100 * NS)] == [1, 3, 5]
    assert [t // NS for t in store.windows("press-3", "camera", 2 * NS, 5 * NS)] == [2, 3, 4]
    assert store.windows("press-3", "micro", 0, 100 * NS) == []


def test_arrivals_follow_the_hub_time(store: Store) -> None:
    store.add([kept(score(9), 1, received_ns=10), kept(score(2), 2, received_ns=20)])
    assert [(when, said.seq) for when, said in store.arrivals("press-3", 10)] == [(20, 2)]
    assert [said.seq for _, said in store.arrivals("press-3", 0)] == [1, 2]


def test_latest_health_is_of_the_newest_epoch(store: Store) -> None:
    store.add([kept(health(1.0), 9, epoch=1), kept(health(2.0), 3, epoch=2), kept(health(3.0), 4, epoch=2)])
    assert {name: said.uptime_s for name, said in store.latest_health(["press-3", "press-4"]).items()} == {"press-3": 3}


def test_gaps_are_told_unless_a_tombstone_accounts_for_them(store: Store) -> None:
    store.add([kept(score(seq), seq) for seq in (3, 4, 8, 9, 12)] + [kept(health(1.0), 2, epoch=5)])
    store.add([kept(score(1), 1, epoch=5)])
    assert store.gaps("press-3") == {1: [(1, 2), (5, 7), (10, 11)]}
    stone = Tombstone(device="press-3", ranges=[(5, 6), (10, 11)], reason="outbox full", time_ns=1)
    store.add([kept(stone, 13)])
    assert store.gaps("press-3") == {1: [(1, 2), (7, 7)]}
    assert store.gaps("press-4") == {}


def test_alarms_of_interest_are_the_open_and_the_recent_ones_whole(store: Store) -> None:
    told = [("old", "raised", 1), ("old", "cleared", 2), ("active", "raised", 3), ("recent", "raised", 4)]
    told += [("recent", "cleared", 50), ("unseen", "raised", 5), ("unseen", "cleared", 6)]
    store.add([kept(alarm(*each), seq) for seq, each in enumerate(told, start=1)])
    for key in ("old", "active", "recent"):
        store.acknowledge("press-3", key, "operator", 7)
    found = [(each.key, each.state) for each in store.alarms(since_ns=40 * NS)]
    assert found == [(key, state) for key, state, _ in told if key != "old"]


def test_the_first_acknowledgement_stands(store: Store) -> None:
    before = store.alarm_version
    store.acknowledge("press-3", "k", "Sato", 5)
    store.acknowledge("press-3", "k", "Abe", 6)
    assert store.acknowledgements() == {("press-3", "k"): ("Sato", 5)}
    assert store.alarm_version > before


@pytest.mark.parametrize(
    "bad",
    [
        msgspec.structs.replace(score(1), seq=2**63),
        msgspec.structs.replace(score(1), start_ns=-1),
        msgspec.structs.replace(score(1), station="press\0"),
        msgspec.structs.replace(score(1), station="p" * 401),
    ],
)
def test_what_a_database_would_refuse_never_reaches_it(bad: Score) -> None:
    with pytest.raises(WireError):
        row("score", bad, b"", 0)


def test_sqlite_keeps_what_it_committed(tmp_path: Path) -> None:
    store = Store(database_url("sqlite:///hub.db", tmp_path))
    with store._engine.connect() as connection:
        found = [connection.exec_driver_sql(pragma.partition("=")[0]).scalar() for pragma in PRAGMAS]
    assert found == ["wal", 2, 10_000]
    store.close()


@pytest.mark.parametrize("url", ["mysql://x/y", "not a url", "sqlite://", "postgresql://plant@127.0.0.1:1/none"])
def test_a_database_that_cannot_be_used_is_refused_with_its_mend(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hub\.database"):
        Store(database_url(url, tmp_path))


def test_a_password_in_the_url_is_not_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Store(database_url("postgresql://plant:geheim@127.0.0.1:1/none", tmp_path))
    assert "geheim" not in str(caught.value)


def test_one_hub_a_state_folder(tmp_path: Path) -> None:
    with only_one(tmp_path, "hub"), pytest.raises(ConfigError, match="another hub"), only_one(tmp_path, "hub"):
        pass
    with only_one(tmp_path, "hub"):
        pass


def test_bench_stores_every_row_and_compares_with_plain_sqlite(tmp_path: Path) -> None:
    measured = store_rate.measure(2000, tmp_path, SystemClock())
    assert measured["rows"] == 2000
    assert measured["ratio"] > 0
