"""`lineside deploy`: begin a plant's repository, publish encoders, roll them out and take them back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from deploy import begin, fleet, repository
from lineside import config
from lineside.cli import guarded
from lineside.clock import SystemClock
from lineside.errors import ConfigError
from lineside.operator import Operator, Outcome, check
from lineside.plant import PlantConfig

app = typer.Typer(no_args_is_help=True, help="Sign, publish, roll out and take back releases.")
rollouts = typer.Typer(no_args_is_help=True, help="Bring what was published to devices.")
app.add_typer(rollouts, name="rollout")

Plant = Annotated[Path, typer.Option("--config", help="The plant file.")]
Devices = Annotated[list[str] | None, typer.Option("--device", help="Only this device (again for more); default: all.")]
Modality = Annotated[str, typer.Option("--modality", help="The modality to change.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Wait = Annotated[float, typer.Option("--wait-s", help="How long a device may take to answer, in seconds.")]
PLANT = Path("plant.toml")
MODALITIES = ("camera", "microphone")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the plant file; made when it is not there.")],
    *,
    site: Annotated[str, typer.Option(help="Name of the line.")] = "",
    device: Annotated[list[str] | None, typer.Option(help="Name of a device (again for more).")] = None,
    modality: Annotated[list[str] | None, typer.Option(help="Default: camera and microphone.")] = None,
    mqtt_port: Annotated[int, typer.Option(help="Port of the broker.")] = 1883,
    hub_port: Annotated[int, typer.Option(help="Port of the dashboard.")] = 8080,
    demo: Annotated[bool, typer.Option("--demo", help="Show the panel that injects faults.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the plant file, keys, repository and passwords; whatever is there already is kept.

    Example: lineside deploy init plant --site line1 --device edge-1 --modality camera --modality microphone
    """
    asked = begin.Asked(site, tuple(device or ()), tuple(modality or MODALITIES), mqtt_port, hub_port, demo)
    told = begin.begin(folder, asked, SystemClock())
    typer.echo(msgspec.json.encode({"told": told}) if as_json else "\n".join(told))


@app.command()
def publish(
    files: Annotated[list[Path], typer.Argument(help="Encoders from `lineside export build`.")],
    config_file: Plant = PLANT,
    as_json: AsJson = False,
) -> None:
    """Sign encoders and point their modalities at them; devices take them at their next look.

    Example: lineside deploy publish --config plant/plant.toml bundle/camera-2.onnx bundle/microphone-2.onnx
    """
    _, repo = _open(config_file)
    published = repo.publish(files)
    _tell(published, as_json, [f"{one.modality} points at version {one.version}" for one in published])


@rollouts.command("start")
def rollout_start(
    modality: Modality,
    config_file: Plant = PLANT,
    device: Devices = None,
    wait_s: Wait = 120.0,
    as_json: AsJson = False,
) -> None:
    """Ask devices to take the version that the modality points at now, and wait until each has.

    Example: lineside deploy rollout start --config plant/plant.toml --modality camera --device edge-1
    """
    plant, repo = _open(config_file)
    pointed = repo.pointed().get(modality)
    if pointed is None:
        raise ConfigError(modality, "has nothing published", "run `lineside deploy publish` first")
    with _operator(plant, config_file) as operator:
        outcomes = operator.ask(_chosen(plant, device), "update", {"modality": modality}, wait_s)
    _tell(outcomes, as_json, _lines(outcomes, f"{modality}-{pointed.version}"))
    check(outcomes, "update", "see `lineside deploy status` and the device's journal, then start again")


@rollouts.command("status")
def rollout_status(modality: Modality, config_file: Plant = PLANT, as_json: AsJson = False) -> None:
    """Which devices run what the modality points at.

    Example: lineside deploy rollout status --config plant/plant.toml --modality camera
    """
    _show_versions(config_file, as_json, modality)


@app.command()
def rollback(
    modality: Modality, config_file: Plant = PLANT, device: Devices = None, wait_s: Wait = 30.0, as_json: AsJson = False
) -> None:
    """Take one modality back to its version before: at once on the devices, without a download.

    Example: lineside deploy rollback --config plant/plant.toml --modality camera
    """
    plant, repo = _open(config_file)
    chosen = _chosen(plant, device)
    with _operator(plant, config_file) as operator:  # first, so that a broker that is away changes nothing
        pointed = repo.step_back(modality)
        outcomes = operator.ask(chosen, "rollback", {"modality": modality}, wait_s)
    _tell({"pointed": pointed, "devices": outcomes}, as_json, _lines(outcomes, f"{modality}-{pointed.version}"))
    again = f"`lineside deploy rollout start --modality {modality}`"
    check(outcomes, "rollback", f"{modality} points at {pointed.version} already: bring the rest by {again}")


@app.command()
def commission(
    config_file: Plant = PLANT,
    device: Devices = None,
    keep: Annotated[bool, typer.Option("--keep", help="What is known stays normal too.")] = False,
    wait_s: Wait = 30.0,
    as_json: AsJson = False,
) -> None:
    """Let devices learn normal running anew, from the next minutes: the line must be well meanwhile.

    They judge by what they know until they have learned; drift that stood raised is cleared then. With --keep what is
    new is added to what they know (the line has drifted and is well), without it takes its place (it was rebuilt).

    Example: lineside deploy commission --config plant/plant.toml --device edge-1 --keep
    """
    plant, _ = _open(config_file)
    with _operator(plant, config_file) as operator:
        outcomes = operator.ask(_chosen(plant, device), "commission", {"keep": "yes"} if keep else {}, wait_s)
    _tell({"devices": outcomes}, as_json, _lines(outcomes, "commissioning"))
    check(outcomes, "commission", "see `lineside deploy devices`, then ask again")


@app.command()
def state(
    name: Annotated[str, typer.Argument(help="One of [device] states, for example a product.")],
    config_file: Plant = PLANT,
    device: Devices = None,
    as_json: AsJson = False,
) -> None:
    """Tell devices which state their station is in from now on; a PLC's gateway may publish the same by itself.

    Example: lineside deploy state product-b --config plant/plant.toml --device edge-1
    """
    plant, _ = _open(config_file)
    chosen = _chosen(plant, device)
    with _operator(plant, config_file) as operator:
        operator.tell_state(chosen, name)
    _tell({"state": name, "devices": chosen}, as_json, [f"{one}: {name}" for one in chosen])


@app.command()
def devices(config_file: Plant = PLANT, as_json: AsJson = False) -> None:
    """Each device of the line, as it tells of itself.

    Example: lineside deploy devices --config plant/plant.toml
    """
    plant, _ = _open(config_file)
    with _operator(plant, config_file) as operator:
        rows = fleet.devices(plant.devices, operator.survey())
    lines = [f"{row.device}  {row.status}  {row.station}  {'; '.join(row.problems)}".rstrip() for row in rows]
    _tell(rows, as_json, lines)


@app.command()
def status(config_file: Plant = PLANT, as_json: AsJson = False) -> None:
    """Versions by device and modality, beside what the repository points at.

    Example: lineside deploy status --config plant/plant.toml --json
    """
    _show_versions(config_file, as_json, "")


@app.command()
def refresh(config_file: Plant = PLANT, as_json: AsJson = False) -> None:
    """Sign snapshot and timestamp anew before they expire (daily, by timer), and what else ends soon.

    Example: lineside deploy refresh --config plant/plant.toml
    """
    _, repo = _open(config_file)
    days = repo.refresh()
    _tell(days, as_json, [f"{role} holds {left:.0f} days" for role, left in days.items()])


def _open(config_file: Path) -> tuple[PlantConfig, repository.Repository]:
    plant = config.load(config_file, PlantConfig)
    return plant, repository.of(plant, config_file.parent, SystemClock())


def _operator(plant: PlantConfig, config_file: Path) -> Operator:
    return Operator(plant.connection("operator"), config_file.parent, plant.site, SystemClock())


def _chosen(plant: PlantConfig, asked: Sequence[str] | None) -> list[str]:
    if unknown := [device for device in asked or () if device not in plant.devices]:
        raise ConfigError(unknown[0], "is no device of this plant", f"known are {', '.join(plant.devices)}")
    return list(asked or plant.devices)


def _show_versions(config_file: Path, as_json: bool, modality: str) -> None:
    plant, repo = _open(config_file)
    with _operator(plant, config_file) as operator:
        reports = operator.survey()
    rows = fleet.versions(plant.devices, (modality,) if modality else plant.modalities, reports, repo.pointed())
    lines = [
        f"{row.device}  {row.modality}  runs {row.running or '-'} (before: {row.previous or '-'}), "
        f"pointed {row.pointed or '-'}: {row.state}"
        for row in rows
    ]
    _tell(rows, as_json, lines)


def _lines(outcomes: Sequence[Outcome], what: str) -> list[str]:
    return [f"{one.device}  {what}: {one.status}{f' ({one.reason})' if one.reason else ''}" for one in outcomes]


def _tell(value: object, as_json: bool, lines: Sequence[str]) -> None:
    if as_json:
        typer.echo(msgspec.json.encode(value).decode())
        return
    for line in lines:
        typer.echo(line)


if __name__ == "__main__":
    guarded(app)
