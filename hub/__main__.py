"""`lineside hub`: run the line's broker, store and dashboard; back the store up; measure it."""

from __future__ import annotations

import json
import logging
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from hub import ports
from hub.backup import backup as copy_store
from hub.backup import restore as put_back
from hub.backup import sqlite_file
from hub.bench import measure
from hub.lock import only_one
from hub.store import database_url
from lineside import config as toml
from lineside.cli import guarded
from lineside.clock import SystemClock
from lineside.plant import PlantConfig

app = typer.Typer(no_args_is_help=True, add_completion=False)
PlantFile = Annotated[Path, typer.Option("--config", help="The plant file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON line for scripts.")]
PLANT = Path("plant.toml")


@app.command()
def run(config: PlantFile = PLANT, json_: Json = False) -> None:
    """Run broker, ingest and dashboard until SIGTERM or Ctrl-C.

    Example: lineside hub run --config plant.toml
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    plant, base = _load(config)
    url = f"http://{plant.hub.host}:{plant.hub.port}"
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # Ports first: a hub that cannot show its dashboard must not start a broker either.
    with (
        ports.bind(plant.hub.host, plant.hub.port, "[hub] port of the plant file") as bound,
        only_one(base / plant.state),
    ):
        from hub.dashboard import server  # NiceGUI takes a second to import; backup and bench need none of it
        from hub.line import Hub

        hub = Hub(plant, base, SystemClock())
        try:
            hub.start()
            server.serve(server.build(hub), bound, stop, lambda: _say(f"dashboard on {url}", {"dashboard": url}, json_))
        finally:
            hub.stop()


@app.command()
def backup(
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    config: PlantFile = PLANT,
    json_: Json = False,
) -> None:
    """Copy the store to one file while the hub runs.

    Example: lineside hub backup --out line1.db
    """
    plant, base = _load(config)
    size = copy_store(sqlite_file(database_url(plant.hub.database, base)), out)
    _say(f"{out}: {size:,} bytes", {"backup": str(out), "bytes": size}, json_)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A file made by `lineside hub backup`.")],
    config: PlantFile = PLANT,
    json_: Json = False,
) -> None:
    """Put a backup in the place of the store; the hub must be stopped, and the old store is kept beside it.

    Example: lineside hub restore line1.db
    """
    plant, base = _load(config)
    target = sqlite_file(database_url(plant.hub.database, base))
    with only_one(base / plant.state):
        kept = put_back(file, target)
    _say(
        f"{target} restored, the old store is {kept or 'none'}",
        {"restored": str(target), "kept": str(kept or "")},
        json_,
    )


@app.command()
def bench(rows: Annotated[int, typer.Option("--rows", min=1, help="Scores to store.")] = 20_000) -> None:
    """Measure the store in a temporary folder, beside plain SQLite; prints one JSON line.

    Example: lineside hub bench --rows 20000
    """
    with tempfile.TemporaryDirectory(prefix="lineside-bench-") as folder:
        typer.echo(json.dumps(measure(rows, Path(folder), SystemClock())))


def _load(path: Path) -> tuple[PlantConfig, Path]:
    """The plant and the folder that its relative paths start from."""
    return toml.load(path, PlantConfig), path.resolve().parent


def _say(sentence: str, facts: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(facts) if as_json else sentence, flush=True)


if __name__ == "__main__":
    guarded(app)
