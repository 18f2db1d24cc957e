"""How fast the store takes scores, beside SQLite's own executemany in the same run and with the same promises."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from hub import tables
from hub.ingest import BATCH_ROWS
from hub.store import PRAGMAS, Store, database_url
from lineside import wire
from lineside.clock import NS, Clock
from lineside.messages import Score


def rows(count: int) -> list[tables.Row]:
    """Scores of one device as ingest makes them, from the wire on."""
    made = []
    for seq in range(1, count + 1):
        score = Score(
            device="bench",
            epoch=1,
            seq=seq,
            station="bench",
            start_ns=seq * NS // 2,
            end_ns=seq * NS // 2 + NS,
            evidence=1.0,
            p_value=0.5,
            limit=0.01,
            contributions={"cam0": 0.6, "mic0": 0.4},
            without={"cam0": 0.5, "mic0": 0.5},
            agreements={"cam0+mic0": 0.1},
            modalities={"cam0": "camera", "mic0": "microphone"},
            absent={},
            versions={"camera": "v1", "microphone": "v1"},
            skew_ms=3.0,
        )
        payload = wire.encode(score)
        made.append(tables.row("score", wire.decode("score", payload), payload, seq))
    return made


def measure(count: int, folder: Path, clock: Clock) -> dict[str, float | int]:
    """Rows a second through the store and through sqlite3 alone, in batches of ingest's size, and their ratio."""
    made = rows(count)
    batches = [made[first : first + BATCH_ROWS] for first in range(0, count, BATCH_ROWS)]
    store = Store(database_url(f"sqlite:///{folder / 'store.db'}", folder))
    began_ns = clock.now_ns()
    stored = sum(store.add(batch) for batch in batches)
    store_s = (clock.now_ns() - began_ns) / NS
    store.close()
    raw_s = _raw(batches, folder / "raw.db", clock)
    return {
        "rows": stored,
        "store_rows_per_s": round(stored / store_s),
        "sqlite_rows_per_s": round(count / raw_s),
        "ratio": round(raw_s / store_s, 3),
    }


def _raw(batches: list[list[tables.Row]], path: Path, clock: Clock) -> float:
    """Seconds for the same rows, the same indexes and the same durability without SQLAlchemy."""
    store = Store(database_url(f"sqlite:///{path}", path.parent))
    store.close()
    names = [column.name for column in tables.SCORES.columns]
    insert = f"INSERT OR IGNORE INTO scores VALUES ({','.join('?' * len(names))})"
    with sqlite3.connect(path) as database:
        for pragma in PRAGMAS:
            database.execute(pragma)
        began_ns = clock.now_ns()
        for batch in batches:
            database.executemany(insert, [[row.values[name] for name in names] for row in batch])
            database.commit()
        took_s = (clock.now_ns() - began_ns) / NS
    database.close()
    return took_s
