"""What is kept long enough goes: no gap, no second coming, a minute row of its scores, and ingest goes on meanwhile."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.minutes import Minute, minute, together
from hub.retention import DAY_NS, Retention, sweep
from hub.store import Store, database_url
from hub.tables import Row
from lineside.clock import NS, SystemClock
from lineside.config import loads
from lineside.errors import ConfigError
from lineside.messages import Tombstone
from lineside.plant import HubSettings, KeepDays
from tests.test_store import alarm, embeddings, health, kept, score

OLD, NOW = 5 * DAY_NS, 20 * DAY_NS
KEEP = KeepDays(embedding=14, score=14, alarm=14, health=14, manifest=14)


def swept(store: Store, keep: KeepDays = KEEP) -> dict[str, int]:
    return {kind: rows for kind, rows in sweep(store, keep, NOW, lambda: False).items() if rows}


def mixed(last: int) -> list[Row]:
    """Embedding and score in turns, 700 at a time beyond one batch of removal; every hundredth never came."""
    numbers = [seq for seq in range(1, last + 1) if seq % 100]
    return [kept(score(seq) if seq % 2 else embeddings(seq, "camera"), seq, received_ns=OLD) for seq in numbers]


def test_each_kind_goes_at_its_own_age_and_leaves_no_gap(store: Store) -> None:
    rows = mixed(1700)
    store.add(rows)
    store.add([kept(score(1800), 1701, received_ns=NOW - DAY_NS)])
    before = store.gaps("press-3")
    assert before == {1: [(seq, seq) for seq in range(100, 1701, 100)]}
    assert swept(store, msgspec.structs.replace(KEEP, score=16.0)) == {"embedding": 833}
    assert store.gaps("press-3") == before
    assert swept(store) == {"score": 850}
    assert store.gaps("press-3") == before
    counts = {name: number for name, number in store.counts().items() if number}
    assert counts == {"scores": 1}
    assert swept(store) == {}


def test_what_went_is_known_when_it_is_sent_again_and_what_never_came_is_not(store: Store) -> None:
    rows = mixed(700)
    store.add(rows)
    swept(store)
    assert store.add(rows) == 0
    assert sum(store.counts().values()) == 0
    late = kept(score(300), 300, received_ns=NOW)
    assert store.add([rows[0], late, late]) == 1
    assert store.add([late]) == 0
    assert store.gaps("press-3") == {1: [(seq, seq) for seq in (100, 200, 400, 500, 600)]}
    assert store.add([kept(score(9000), 701, received_ns=NOW), kept(score(1), 5, epoch=2)]) == 2
    assert store.gaps("press-3") == {1: [(seq, seq) for seq in (100, 200, 400, 500, 600, 700)], 2: [(1, 4)]}


def test_tombstones_stay_and_account_for_numbers_that_are_settled(store: Store) -> None:
    store.add(mixed(300))
    stone = Tombstone(device="press-3", ranges=[(100, 100), (300, 300)], reason="outbox full", time_ns=1)
    store.add([kept(stone, 301, received_ns=OLD)])
    swept(store)
    assert store.gaps("press-3") == {1: [(200, 200)]}
    assert store.counts()["tombstones"] == 1


def test_an_open_alarm_stays_however_old(store: Store) -> None:
    said = [("open", "raised", 1), ("done", "raised", 2), ("done", "cleared", 3), ("unseen", "raised", 4)]
    said += [("unseen", "cleared", 5)]
    store.add([kept(alarm(*each), seq, received_ns=OLD) for seq, each in enumerate(said, start=1)])
    store.add([kept(health(1.0), 6, received_ns=OLD)])
    for key in ("open", "done"):
        store.acknowledge("press-3", key, "Sato", 9)
    version = store.alarm_version
    assert swept(store) == {"alarm": 2, "health": 1}
    assert [(each.key, each.state) for each in store.alarms()] == [each[:2] for each in said if each[0] != "done"]
    assert store.alarm_version > version
    store.acknowledge("press-3", "unseen", "Abe", 10)
    assert swept(store) == {"alarm": 2}
    assert store.gaps("press-3") == {}


def test_scores_leave_a_row_a_minute_whatever_the_batches(store: Store) -> None:
    said = [msgspec.structs.replace(score(t, p_value=0.9 - t / 2000), evidence=float(t % 7)) for t in range(1300)]
    quiet = msgspec.structs.replace(said[61], contributions={"mic0": 3.0}, start_ns=61 * NS + 1)
    store.add([kept(each, seq, received_ns=OLD) for seq, each in enumerate([*said, quiet], start=1)])
    swept(store)
    minutes = store.score_minutes("press-3", 60 * NS, 1200 * NS)
    expected = together(minute(each) for each in [*said, quiet])
    assert [each.start_ns // NS for each in minutes] == list(range(60, 1200, 60))
    for each in minutes:
        other = expected[each.place]
        assert (each.scores, each.p_value) == (other.scores, other.p_value)
        assert each.evidence == pytest.approx(other.evidence)
    assert minutes[0].scores == 61
    assert {name: share.moments for name, share in minutes[0].contributions.items()} == {"cam0": 60, "mic0": 1}
    assert minutes[0].contributions["mic0"].mean == 3.0


@given(st.lists(st.tuples(st.integers(0, 200), st.floats(0, 9), st.booleans()), min_size=1), st.integers(1, 20))
def test_minutes_do_not_depend_on_how_scores_are_grouped(said: list[tuple[int, float, bool]], size: int) -> None:
    scores = [
        minute(msgspec.structs.replace(score(t), evidence=e, contributions={"a": e} if has else {}))
        for t, e, has in said
    ]
    step: dict[tuple[str, str, int], Minute] = {}
    for first in range(0, len(scores), size):
        step = together([*step.values(), *scores[first : first + size]])
    whole = together(scores)
    assert step.keys() == whole.keys()
    for place, each in step.items():
        assert (each.scores, each.p_value) == (whole[place].scores, whole[place].p_value)
        assert each.evidence == pytest.approx(whole[place].evidence)


def test_ingest_writes_between_the_batches_of_a_sweep(tmp_path: Path) -> None:
    store = Store(database_url("sqlite:///hub.db", tmp_path))
    store.add(mixed(4000))
    between = []

    def rest() -> bool:
        seq = 5001 + len(between)
        between.append(store.add([kept(score(seq), seq, received_ns=NOW)]))
        return False

    gone = sweep(store, KEEP, NOW, rest)
    assert gone["embedding"] + gone["score"] == 3960
    assert between == [1] * len(between)
    assert len(between) >= 8
    store.close()


def test_the_chore_runs_by_itself_and_ends_when_told(tmp_path: Path) -> None:
    store = Store(database_url("sqlite:///hub.db", tmp_path))
    store.add(mixed(1500))
    went = threading.Event()

    class Told:
        def numberings(self, kind: str) -> list[tuple[str, int]]:
            return store.numberings(kind)

        def retire(self, *asked: object) -> int:
            removed = store.retire(*asked)
            went.set()
            return removed

    chore = Retention(Told(), KEEP, SystemClock())
    chore.start()
    assert went.wait(60)
    chore.stop()
    assert store.counts()["embeddings"] < 743
    store.close()


def test_days_in_the_plant_file_are_checked() -> None:
    assert loads("[keep_days]\nscore = 30", HubSettings).keep_days.score == 30
    with pytest.raises(ConfigError, match="more than 0"):
        loads("[keep_days]\nscore = 0", HubSettings)
    with pytest.raises(ConfigError, match="did you mean 'score'"):
        loads("[keep_days]\nscores = 3", HubSettings)
