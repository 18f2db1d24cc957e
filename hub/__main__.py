"""`lineside hub`: run the line's broker, store and dashboard; back the store up; measure it."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from hub import labels_command, people, ports
from hub.backup import backup as copy_store
from hub.backup import restore as put_back
from hub.bench import report
from hub.ingest import Ingest
from hub.ran import look_up, moment_ns
from hub.store import Store, database_url
from lineside import config as toml
from lineside.cli import guarded, tell, until_told
from lineside.clock import SystemClock
from lineside.errors import ConfigError, GateError, LinesideError
from lineside.lock import only_one
from lineside.pins import Pins
from lineside.plant import PlantConfig

app = typer.Typer(no_args_is_help=True, add_completion=False)
app.add_typer(people.app, name="user")
app.command()(people.audit)
app.command()(labels_command.labels)
PlantFile = people.PlantFile
Json = people.Json
PLANT = people.PLANT


@app.command()
def run(config: PlantFile = PLANT, json_: Json = False) -> None:
    """Run broker, ingest and dashboard until SIGTERM or Ctrl-C.

    Example: lineside hub run --config plant.toml
    """
    _log()
    plant, base = _load(config)
    url = plant.url
    stop = until_told()
    # Ports first: a hub that cannot show its dashboard must not start a broker either.
    with (
        ports.bind(plant.hub.host, plant.hub.port, "[hub] port of the plant file") as bound,
        only_one(base / plant.state, "hub"),
    ):
        from hub.dashboard import server  # NiceGUI takes a second to import; backup and bench need none of it
        from hub.line import Hub

        hub = Hub(plant, base, SystemClock(), config.name)
        tls = server.Tls(base / plant.hub.cert_file, base / plant.hub.key_file) if plant.hub.cert_file else None
        try:
            hub.start()
            told = functools.partial(_say, f"dashboard on {url}", {"dashboard": url}, json_)
            server.serve(server.build(hub), bound, stop, told, tls)
        finally:
            hub.stop()


@app.command()
def ingest(config: PlantFile = PLANT, json_: Json = False) -> None:
    """Take messages into the store until SIGTERM or Ctrl-C: no broker, no dashboard.

    On PostgreSQL any number of these share the work with each other and with `lineside hub run`.

    Example: lineside hub ingest --config plant.toml
    """
    _log()
    plant, base = _load(config)
    url = database_url(plant.hub.database, base)
    alone = url.get_backend_name() == "sqlite"
    with only_one(base / plant.state, "hub") if alone else contextlib.nullcontext():
        store, clock, stop = Store(url), SystemClock(), until_told()
        taking = Ingest(plant.site, plant.connection("hub"), base, store, clock=clock, shared=store.shared)
        taking.start()
        try:
            while not taking.connected and not stop.wait(0.02):
                pass
            _say(f"takes messages of {plant.site}", {"site": plant.site, "shared": store.shared}, json_)
            while taking.alive and not stop.wait(0.2):
                pass
        finally:
            taking.stop()
            store.close()
        if not stop.is_set():
            raise LinesideError("ingest", "its writer ended by itself", "see the lines above, start it again")


@app.command()
def backup(
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    config: PlantFile = PLANT,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file of that name.")] = False,
    json_: Json = False,
) -> None:
    """Copy the store to one file, and its SHA-256 to another beside it, while the hub runs.

    A file that is there is not overwritten, and others cannot read the copy: it holds hashes of passwords.
    A PostgreSQL store needs pg_dump on this machine (apt-get install postgresql-client).

    Example: lineside hub backup --out line1.db
    """
    plant, base = _load(config)
    size = copy_store(database_url(plant.hub.database, base), out, force=force)
    _say(f"{out}: {size:,} bytes", {"backup": str(out), "bytes": size}, json_)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A file made by `lineside hub backup`.")],
    config: PlantFile = PLANT,
    json_: Json = False,
) -> None:
    """Put a backup in the place of the store; the hub must be stopped, and the old store is kept.

    Its hash file must lie beside it. A backup that a newer lineside made is refused.

    Example: lineside hub restore line1.db
    """
    plant, base = _load(config)
    url = database_url(plant.hub.database, base)
    with only_one(base / plant.state, "hub"):
        kept = put_back(file, url, base / plant.state)
    place = str(url.database) if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)
    _say(f"{place} restored, the old store is {kept or 'none'}", {"restored": place, "kept": str(kept or "")}, json_)


@app.command()
def grafana() -> None:
    """Print the Grafana dashboard that reads the hub's /metrics, to be imported there.

    Example: lineside hub grafana > lineside.json
    """
    typer.echo((Path(__file__).parent / "grafana" / "lineside.json").read_text(encoding="utf-8"), nl=False)


@app.command()
def ran(
    config: PlantFile = PLANT,
    device: Annotated[str, typer.Option("--device", help="Of which device.")] = "",
    at: Annotated[str, typer.Option("--at", help="When, as 2026-11-23T10:00 (this machine's time).")] = "",
    alarm: Annotated[str, typer.Option("--alarm", help="At the onset of the alarm with this key.")] = "",
    json_: Json = False,
) -> None:
    """Which encoders a device ran at a moment, by version and SHA-256, from what it said and signed of itself.

    Example: lineside hub ran --config plant.toml --device edge-1 --at 2026-11-23T10:00
    """
    if bool(alarm) == bool(device and at):
        raise LinesideError("ran", "asks for one moment", "give --device and --at, or --alarm")
    plant, base = _load(config)
    store = Store(database_url(plant.hub.database, base))
    try:
        doubt = Pins(base / plant.secrets).problem
        rows = look_up(store, doubt, device=device, at_ns=moment_ns(at) if at else 0, alarm=alarm)
    finally:
        store.close()
    _say("\n".join(row.line for row in rows), {"ran": [msgspec.to_builtins(row) for row in rows]}, json_)


@app.command()
def bench(
    only: Annotated[str, typer.Option("--only", help=f"Parts, with commas between: {','.join(report.PARTS)}.")] = "",
    messages: Annotated[int, typer.Option("--messages", min=1000, help="Messages a turn of `rate`.")] = 120_000,
    turns: Annotated[int, typer.Option("--turns", min=1, help="Turns of `rate`.")] = 5,
    rows: Annotated[int, typer.Option("--rows", min=1000, help="Old messages of `backlog`.")] = 1_000_000,
    kills: Annotated[int, typer.Option("--kills", min=1, help="Times that the hub is killed.")] = 100,
    pages: Annotated[int, typer.Option("--pages", min=1, help="Pages that `page` opens, of each span.")] = 7,
    alarms: Annotated[int, typer.Option("--alarms", min=1, help="Alarms that `live` raises.")] = 120,
    json_: Json = False,
) -> None:
    """Measure ingest, backlog, kills and queries on this machine; needs mosquitto. Exit code 6 when a goal is missed.

    `page` and `live` measure the pages in Chromium, and only when they are named.

    Example: lineside hub bench --only rate,plans
    """
    parts = [part for part in only.split(",") if part] or list(report.USUAL)
    if unknown := set(parts) - set(report.PARTS):
        raise ConfigError("--only", f"no part {min(unknown)!r}", f"give some of {','.join(report.PARTS)}")
    with tempfile.TemporaryDirectory(prefix="lineside-bench-") as folder:
        sizes = report.Sizes(messages, turns, rows, kills, pages, alarms)
        found = report.measure(parts, sizes, Path(folder), SystemClock(), tell)
    tell("")
    lines = report.table(found)
    typer.echo(json.dumps(found) if json_ else report.text(lines))
    if missed := [line.what for line in lines if line.held is False]:
        raise GateError(
            "hub bench", f"missed: {'; '.join(missed)}", "run it on an idle machine, see docs/results/hub.md"
        )


def _log() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # hub.migrations says in one line what it did


@app.command()
def notify(config: PlantFile = PLANT, json_: Json = False) -> None:
    """Send a test message to every target of the secrets file; exit code 6 when an address does not take it.

    Example: lineside hub notify --config plant.toml
    """
    from hub.messenger import addresses, rehearse

    plant, base = _load(config)
    took = rehearse(addresses(plant, base), plant.site)
    told = [f"{name}: {sum(each)} of {len(each)} addresses took it" for name, each in took.items()]
    _say("\n".join(told) or "[alarms] notify of the plant file names no file: nobody is told", took, json_)
    if bad := [name for name, each in took.items() if not all(each)]:
        raise GateError("hub notify", f"{', '.join(bad)} could not be told", "mend the URLs, see the lines above")


@app.command()
def install(
    config: Annotated[Path | None, typer.Option("--config", help="The plant file.")] = None,
    root: Annotated[Path, typer.Option(help="Prepare the image under this folder; nothing is started.")] = Path("/"),
    executable: Annotated[str, typer.Option(help="The `lineside` that the services run (default: this one).")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what was edited.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take the services away; the plant's folder stays.")] = False,
    purge: Annotated[bool, typer.Option("--purge", help="With --remove: what was edited and users go too.")] = False,
    json_: Json = False,
) -> None:
    """Run the hub as a service, and sign anew every day what of the repository expires: users, units, owners of files.

    The plant's folder must be /var/lib/lineside-plant. After `deploy init` or another command of deploy that was run
    as root, do it again: it gives new files to whom they belong.

    Example: sudo /opt/lineside/bin/lineside hub install --config /var/lib/lineside-plant/plant.toml

    Example: sudo /opt/lineside/bin/lineside hub install --remove
    """
    from hub.install import wanted
    from lineside.parts import HUB
    from lineside.placing import Asked, carry_out

    if remove == (config is not None) or (purge and not remove):
        raise typer.BadParameter("give either --config or --remove; --purge goes with --remove")
    here = None
    if config is not None:
        plant, base = _load(config)
        inside = Path("/") / base.relative_to(root.resolve()) if base.is_relative_to(root.resolve()) else base
        here = partial(wanted, plant, str(inside))
    changes = carry_out(HUB, here, Asked(root, executable, dry_run, force, purge))
    typer.echo(msgspec.json.encode(changes) if json_ else "\n".join(changes.told) or "all is as it should be")


def _load(path: Path) -> tuple[PlantConfig, Path]:
    """The plant and the folder that its relative paths start from."""
    return toml.load(path, PlantConfig), path.resolve().parent


def _say(sentence: str, facts: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(facts) if as_json else sentence, flush=True)


if __name__ == "__main__":
    guarded(app)
