"""`lineside deploy rollout`: bring what was published to devices, ring by ring."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from deploy import rollout
from deploy.conductor import Conductor, Row
from deploy.desk import PLANT, AsJson, Desk, PlantFile, sit, tell
from lineside import cli, config
from lineside.errors import ConfigError, GateError
from lineside.plant import PlantConfig
from lineside.rollout_record import Record, Ring, policy, rings
from lineside.rollout_records import apart
from lineside.targets import Terms

app = typer.Typer(no_args_is_help=True, help="Bring what was published to devices, ring by ring.")
BAR = 30

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end of the ring that is opened.")]
OneOf = Annotated[str, typer.Option("--modality", help="Of which modality; needed where several are under way.")]
Share = Annotated[list[float] | None, typer.Option("--percent", help="Of all devices by lot (again for a next ring).")]
Seconds = Annotated[float | None, typer.Option(help="In the place of [rollout.terms] of the plant file.")]


@app.command()
def start(
    modality: Annotated[
        list[str], typer.Option("--modality", help="The modality to change (again: changed together).")
    ],
    *,
    config_file: PlantFile = PLANT,
    version: Annotated[list[int] | None, typer.Option(help="For each modality; default: its newest.")] = None,
    canary: Annotated[list[str] | None, typer.Option(help="A device of the first ring (again for more).")] = None,
    percent: Share = None,
    everywhere: Annotated[bool, typer.Option("--all", help="All devices at once, in one ring.")] = False,
    shadow_s: Seconds = None,
    probation_s: Seconds = None,
    soak_min: Annotated[float | None, typer.Option(help="In the place of [rollout] soak_min.")] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Promote by gates alone, without waiting for a person.")] = False,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Offer a published version to the first ring, and wait until the ring has proven it or it was taken back.

    Several modalities are changed together on each device, as encoders of a new space must be. Ctrl-C ends the
    waiting, not the rollout.

    Example: lineside deploy rollout start --config plant/plant.toml --modality camera
    """
    desk = sit(config_file)
    settings = desk.plant.rollout
    own = {"shadow_s": shadow_s, "probation_s": probation_s}
    terms = msgspec.convert(settings.terms, Terms, from_attributes=True)
    soak = settings.soak_min if soak_min is None else soak_min
    record = Record(
        rollout=secrets.token_hex(4),
        versions=_versions(desk, modality, version or []),
        rings=[Ring(percent=100.0)] if everywhere else _rings(desk, canary, percent),
        policy=policy(settings, settings.approve and not auto, soak),
        terms=msgspec.structs.replace(terms, **{name: value for name, value in own.items() if value is not None}),
        state="open",
        since_ns=0,
    )
    with desk.operator() as operator:  # first, so that a broker that is away changes nothing
        conductor = desk.conductor(operator)
        apart(desk.records, modality)
        _show_ring(conductor, conductor.begin(record), wait, as_json)


@app.command()
def status(modality: OneOf = "", config_file: PlantFile = PLANT, as_json: AsJson = False) -> None:
    """The rollout that is under way, else the latest: its ring, how far each device is, what happened.

    Example: lineside deploy rollout status --config plant/plant.toml --modality camera
    """
    desk = sit(config_file)
    record = desk.records.last(modality)
    if record is None:
        tell(
            {"rollout": None, "devices": []},
            as_json,
            ["no rollout yet; begin one with `lineside deploy rollout start`"],
        )
        return
    with desk.operator() as operator:
        conductor = desk.conductor(operator)
        conductor.seen()
        _tell(conductor, record, as_json)


@app.command()
def promote(config_file: PlantFile = PLANT, modality: OneOf = "", wait: Wait = True, as_json: AsJson = False) -> None:
    """Open the next ring of a rollout that waits for it, and wait for that ring's end; also ends a soak early.

    Example: lineside deploy rollout promote --config plant/plant.toml --modality camera
    """
    desk = sit(config_file)
    record = desk.records.chosen(modality)
    with desk.operator() as operator:
        conductor = desk.conductor(operator)
        conductor.step(record.rollout, 1.5)
        _show_ring(conductor, conductor.change(record.rollout, rollout.promote), wait, as_json)


@app.command()
def pause(config_file: PlantFile = PLANT, modality: OneOf = "", as_json: AsJson = False) -> None:
    """Let no further device begin; those that are under way go on.

    Example: lineside deploy rollout pause --config plant/plant.toml
    """
    _change(config_file, modality, rollout.pause, as_json)


@app.command()
def resume(config_file: PlantFile = PLANT, modality: OneOf = "", as_json: AsJson = False) -> None:
    """Go on with a rollout that was paused; devices begin at their next look.

    Example: lineside deploy rollout resume --config plant/plant.toml
    """
    _change(config_file, modality, rollout.resume, as_json)


@app.command()
def abort(
    config_file: PlantFile = PLANT,
    modality: OneOf = "",
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "by the operator",
    as_json: AsJson = False,
) -> None:
    """Take a rollout back: devices that have the version return to the one before, from their own disks.

    Example: lineside deploy rollout abort --config plant/plant.toml --modality camera --reason "glare at noon"
    """
    desk = sit(config_file)
    abort_now(desk, desk.records.chosen(modality), reason, as_json)


@app.command()
def watch(
    config_file: PlantFile = PLANT,
    modality: OneOf = "",
    always: Annotated[bool, typer.Option("--always", help="Every rollout, also later ones, until SIGTERM.")] = False,
    as_json: AsJson = False,
) -> None:
    """Follow a rollout to its end and act on it: promote where no person is waited for, abort on a breach.

    With --always it is what lineside-rollout.service does: soaks and limits go on with nobody at the desk.

    Example: lineside deploy rollout watch --config plant/plant.toml
    """
    if always:
        _always(config_file, cli.until_told())
        return
    desk = sit(config_file)
    record = desk.records.chosen(modality)
    with desk.operator() as operator:
        conductor = desk.conductor(operator)
        _finish(conductor, conductor.run(record.rollout, lambda _: False, _bar), as_json)


def _always(config_file: Path, stop: threading.Event) -> None:
    """Follow every rollout until `stop`; a plant file that has changed is read again."""
    while not stop.is_set():
        desk = sit(config_file)

        def other(plant: PlantConfig = desk.plant) -> bool:
            return config.load(config_file, PlantConfig) != plant

        with desk.operator() as operator:
            typer.echo(f"following the rollouts of {desk.plant.site}")
            desk.conductor(operator).follow(
                lambda: stop.is_set() or other(), lambda record, text: typer.echo(f"{record.name}: {text}")
            )


def abort_now(desk: Desk, record: Record, reason: str, as_json: bool) -> None:
    """Abort a rollout that is under way, and tell which devices have gone back."""
    with desk.operator() as operator:
        conductor = desk.conductor(operator)
        conductor.seen()
        done = conductor.change(record.rollout, lambda now, at_ns: rollout.abort(now, reason, at_ns))
        _tell(conductor, conductor.settled(done), as_json)


def _change(config_file: Path, modality: str, how: Callable[[Record, int], Record], as_json: bool) -> None:
    desk = sit(config_file)
    record = desk.records.chosen(modality)
    with desk.operator() as operator:
        conductor = desk.conductor(operator)
        conductor.seen()
        _tell(conductor, conductor.change(record.rollout, how), as_json)


def _rings(desk: Desk, canary: Sequence[str] | None, percents: Sequence[float] | None) -> list[Ring]:
    """The plant's rings, or those of the command line: percentages alone make rings without a canary."""
    settings = desk.plant.rollout
    if percents and (list(percents) != sorted(set(percents)) or percents[0] <= 0 or percents[-1] != 100):
        raise ConfigError("--percent", f"{', '.join(f'{one:g}' for one in percents)}", "rise from above 0 to 100")
    default = [] if percents else [*settings.canary] or desk.plant.devices[:1]
    return rings(desk.chosen(canary) if canary else default, percents or settings.percents)


def _versions(desk: Desk, modalities: Sequence[str], versions: Sequence[int]) -> dict[str, int]:
    """The version to bring for each modality. Raises ConfigError, or ReleaseError where there is nothing to bring."""
    if versions and len(versions) != len(modalities):
        raise ConfigError("--version", f"{len(versions)} for {len(modalities)} modalities", "give one for each")
    asked = dict(zip(modalities, versions, strict=True)) if versions else dict.fromkeys(modalities)
    found = {modality: desk.repository.published(modality, version) for modality, version in asked.items()}
    if there := [f"{one.modality}-{one.version}" for one in found.values() if one.pointed]:
        mend = "publish a newer one, or name one with --version"
        raise ConfigError(there[0], "is what every device is to run already", mend)
    return {modality: one.version for modality, one in found.items()}


def _show_ring(conductor: Conductor, record: Record, wait: bool, as_json: bool) -> None:
    """Wait for the end of the ring that is open now, and tell what came of it."""
    ring = record.ring

    def done(now: Record) -> bool:
        return now.ring > ring or now.state == "approval"

    _finish(conductor, conductor.run(record.rollout, done, _bar) if wait else record, as_json)


def _finish(conductor: Conductor, record: Record, as_json: bool) -> None:
    _tell(conductor, record, as_json)
    if record.state == "aborted":
        raise GateError(f"rollout of {record.name}", f"aborted: {record.reason}", "see the devices' reasons above")


def _tell(conductor: Conductor, record: Record, as_json: bool) -> None:
    cli.tell("")
    rows = conductor.rows(record)
    lines = [
        f"{record.name}: {_standing(record)}",
        *(f"  {row.device}  {row.progress}  {row.told}".rstrip() for row in rows),
    ]
    lines += [f"  {event.text}" for event in record.events]
    if record.state == "approval":
        lines.append(f"go on with `lineside deploy rollout promote --modality {min(record.versions)}`")
    tell({"rollout": record, "devices": rows}, as_json, lines)


def _standing(record: Record) -> str:
    ring = f"ring {record.ring + 1} of {len(record.rings)}"
    return f"{record.state} ({record.reason})" if record.reason else f"{record.state}, {ring}"


def _bar(record: Record, rows: Sequence[Row]) -> None:
    """The ring's progress on one line of a terminal."""
    of = max(1, len(rows))
    done, failed, away = (sum(row.progress == what for row in rows) for what in ("done", "failed", "away"))
    bar = "#" * round(BAR * done / of)
    cli.tell(f"{record.name}  {_standing(record)}  [{bar:<{BAR}}] {done} of {len(rows)}, {failed} failed, {away} away")
