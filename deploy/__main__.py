"""`lineside deploy`: begin a plant's repository, publish encoders, roll them out and take them back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from deploy import begin, fleet, rollout_command
from deploy.desk import PLANT, AsJson, Devices, Modality, PlantFile, WaitS, outcomes_told, sit, tell
from deploy.repository import Published
from lineside.cli import guarded
from lineside.clock import SystemClock
from lineside.errors import ReleaseError
from lineside.operator import check

app = typer.Typer(no_args_is_help=True, help="Sign, publish, roll out and take back releases.")
app.add_typer(rollout_command.app, name="rollout")
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
    tls: Annotated[bool, typer.Option("--tls", help="Certificates for a broker beyond this machine.")] = False,
    listen: Annotated[str, typer.Option(help="Address of the broker; beyond loopback it needs --tls.")] = "127.0.0.1",
    host: Annotated[str, typer.Option(help="Name or address by which devices reach it, where it is another.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write the plant file, keys, repository, passwords and certificates; whatever is there already is kept.

    Tells who keeps which file, and what belongs offline. Options count where no plant file is there yet.

    Example: lineside deploy init plant --site line1 --device edge-1 --modality camera --modality microphone
    """
    asked = begin.Asked(site, tuple(device or ()), tuple(modality or MODALITIES), mqtt_port, hub_port, demo)
    asked = replace(asked, listen=listen, host=host, tls=tls)
    begun = begin.begin(folder, asked, SystemClock())
    width = max(len(row.path) for row in begun.keep)
    kept = [f"  {row.mode}  {row.path:{width}}  {row.place}; {row.needed}" for row in begun.keep]
    tell(begun, as_json, [*begun.told, "who keeps what:", *kept])


@app.command()
def publish(
    files: Annotated[list[Path], typer.Argument(help="Encoders from `lineside export build`.")],
    config_file: PlantFile = PLANT,
    as_json: AsJson = False,
) -> None:
    """Sign encoders. A modality's first version is pointed at: devices take it at their next look. Later ones wait.

    Example: lineside deploy publish --config plant/plant.toml bundle/camera-2.onnx bundle/microphone-2.onnx
    """
    repository = sit(config_file).repository
    published = repository.publish(files)
    tell(published, as_json, [_published(one, repository.refusal({one.modality: one.version})) for one in published])


@app.command()
def rollback(
    modality: Modality,
    config_file: PlantFile = PLANT,
    device: Devices = None,
    wait_s: WaitS = 30.0,
    as_json: AsJson = False,
) -> None:
    """Take one modality back to its version before: at once on the devices, without a download.

    While a rollout of it is under way, that is aborted instead: its version was nobody's but the rings'.

    Example: lineside deploy rollback --config plant/plant.toml --modality camera
    """
    desk = sit(config_file)
    chosen = desk.chosen(device)
    if under_way := desk.records.running(modality):
        return rollout_command.abort_now(desk, under_way[0], "rolled back", as_json)
    with desk.operator() as operator:  # first, so that a broker that is away changes nothing
        pointed = desk.repository.step_back(modality)
        outcomes = operator.ask(chosen, "rollback", {"modality": modality}, wait_s)
    lines = outcomes_told(outcomes, f"{modality}-{pointed.version}")
    tell({"pointed": pointed, "devices": outcomes}, as_json, lines)
    mend = f"{modality} points at {pointed.version} already: the rest take it at their next look"
    check(outcomes, "rollback", mend)


@app.command()
def commission(
    config_file: PlantFile = PLANT,
    device: Devices = None,
    keep: Annotated[bool, typer.Option("--keep", help="What is known stays normal too.")] = False,
    wait_s: WaitS = 30.0,
    as_json: AsJson = False,
) -> None:
    """Let devices learn normal running anew, from the next minutes: the line must be well meanwhile.

    They judge by what they know until they have learned; drift that stood raised is cleared then. With --keep what is
    new is added to what they know (the line has drifted and is well), without it takes its place (it was rebuilt).

    Example: lineside deploy commission --config plant/plant.toml --device edge-1 --keep
    """
    desk = sit(config_file)
    with desk.operator() as operator:
        outcomes = operator.ask(desk.chosen(device), "commission", {"keep": "yes"} if keep else {}, wait_s)
    tell({"devices": outcomes}, as_json, outcomes_told(outcomes, "commissioning"))
    check(outcomes, "commission", "see `lineside deploy devices`, then ask again")


@app.command()
def record(
    switch: Annotated[Literal["on", "off"], typer.Argument(help="Whether devices record everything.")],
    config_file: PlantFile = PLANT,
    device: Devices = None,
    wait_s: WaitS = 30.0,
    as_json: AsJson = False,
) -> None:
    """Let devices record all that they see and hear, on their own disks, or stop it; it holds over restarts.

    Nothing of it is sent. A change of `record_all` in the device file rules again.

    Example: lineside deploy record on --config plant/plant.toml --device edge-1
    """
    desk = sit(config_file)
    with desk.operator() as operator:
        outcomes = operator.ask(desk.chosen(device), "record", {"switch": switch}, wait_s)
    tell({"devices": outcomes}, as_json, outcomes_told(outcomes, f"recording {switch}"))
    check(outcomes, "record", "see `lineside deploy devices`, then ask again")


@app.command()
def state(
    name: Annotated[str, typer.Argument(help="One of [device] states, for example a product.")],
    config_file: PlantFile = PLANT,
    device: Devices = None,
    as_json: AsJson = False,
) -> None:
    """Tell devices which state their station is in from now on; a PLC's gateway may publish the same by itself.

    Example: lineside deploy state product-b --config plant/plant.toml --device edge-1
    """
    desk = sit(config_file)
    chosen = desk.chosen(device)
    with desk.operator() as operator:
        operator.tell_state(chosen, name)
    tell({"state": name, "devices": chosen}, as_json, [f"{one}: {name}" for one in chosen])


@app.command()
def devices(config_file: PlantFile = PLANT, as_json: AsJson = False) -> None:
    """Each device of the line, as it tells of itself.

    Example: lineside deploy devices --config plant/plant.toml
    """
    desk = sit(config_file)
    with desk.operator() as operator:
        rows = fleet.devices(desk.plant.devices, operator.survey())
    lines = [f"{row.device}  {row.status}  {row.station}  {'; '.join(row.problems)}".rstrip() for row in rows]
    tell(rows, as_json, lines)


@app.command()
def status(config_file: PlantFile = PLANT, as_json: AsJson = False) -> None:
    """Versions by device and modality, how far each is in a rollout, and whether that is signed by the device.

    The first key that signs for a device is kept; what another one signs later is not believed.

    Example: lineside deploy status --config plant/plant.toml --json
    """
    desk = sit(config_file)
    with desk.operator() as operator:
        reports = operator.survey()
    rows = fleet.versions(desk.plant.devices, desk.plant.modalities, reports, desk.repository.pointed(), desk.pins)
    tell(rows, as_json, [row.line for row in rows])


@app.command()
def pointers(config_file: PlantFile = PLANT, as_json: AsJson = False) -> None:
    """What each modality points at, ran before and is on its way to, from the repository alone: no device is asked.

    Example: lineside deploy pointers --config plant/plant.toml --json
    """
    repo = sit(config_file).repository
    found = {modality: pointer for modality in repo.roles.modalities() if (pointer := repo.pointer(modality))}
    tell(found, as_json, [f"{modality} points at {pointer.version}" for modality, pointer in found.items()])


@app.command()
def refresh(config_file: PlantFile = PLANT, as_json: AsJson = False) -> None:
    """Sign snapshot and timestamp anew before they expire (daily, by timer), and what else is past half of its time.

    What stays past it waits for its keys: a warning; near its end an alarm, with exit code 5.

    Example: lineside deploy refresh --config plant/plant.toml
    """
    holds = sit(config_file).repository.refresh()
    lines = [f"{role} holds {one.days:.0f} of {one.of_days} days: {one.level}" for role, one in holds.items()]
    tell(holds, as_json, lines)
    if late := [role for role, hold in holds.items() if hold.level == "alarm"]:
        mend = f"bring the keys of {', '.join(late)} and run this again: devices take no update after that"
        raise ReleaseError("expiry", late[0], f"ends in {holds[late[0]].days:.0f} days", mend)


@app.command()
def rotate(
    role: Annotated[str, typer.Option(help="root, targets, snapshot, timestamp, or a modality.")],
    config_file: PlantFile = PLANT,
    as_json: AsJson = False,
) -> None:
    """Give a role new keys; the old ones count no more. Devices follow by themselves, whatever they slept through.

    For a key that was stolen or lost, and for a repository of one root key that is to have several. It needs the
    threshold of root's keys; for a modality the targets key. snapshot and timestamp are replaced together. Of a stolen
    modality key, look first at what `lineside deploy status` says is pointed at.

    Example: lineside deploy rotate --config plant/plant.toml --role timestamp
    """
    repo = sit(config_file).repository
    rotated = repo.rotate(role)
    begin.hand_out(repo, config_file.parent)
    changed = f"{', '.join(rotated.roles)}: {len(rotated.revoked)} keys count no more"
    lines = [
        f"{changed}, root is version {rotated.root_version}",
        *(f"new key {file}" for file in rotated.files),
        "destroy other copies of the old keys; new devices begin with the root.json that is here now",
    ]
    tell(rotated, as_json, lines)


def _published(one: Published, refusal: str) -> str:
    """`refusal` is why a rollout of it alone would be refused."""
    if one.pointed:
        return f"{one.modality}-{one.version} published; {one.modality} points at it"
    if refusal:
        return f"{one.modality}-{one.version} published; a rollout of it alone is refused: {refusal}"
    begin = f"lineside deploy rollout start --modality {one.modality}"
    return f"{one.modality}-{one.version} published; begin with `{begin}`"


if __name__ == "__main__":
    guarded(app)
