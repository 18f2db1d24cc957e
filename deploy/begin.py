"""Begin a plant: its file, keys, repository and passwords; and say what goes where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from deploy import credentials, repository
from deploy.roles import OFFLINE
from lineside import config
from lineside.clock import Clock
from lineside.errors import ConfigError
from lineside.files import write_atomic
from lineside.plant import PlantConfig

NAME = "plant.toml"
ROOT = "root.json"


@dataclass(frozen=True)
class Asked:
    """What the command line says of a plant; it counts only where no plant file is there yet."""

    site: str
    devices: tuple[str, ...]
    modalities: tuple[str, ...]
    mqtt_port: int
    hub_port: int
    demo: bool


def begin(folder: Path, asked: Asked, clock: Clock) -> list[str]:
    """Make what is missing, keep what is there; gives the lines to tell.

    Raises ConfigError when there is no plant file and no site or device is given, or when a given one is not in the
    plant file that is there.
    """
    path = folder / NAME
    plant = _kept(path, asked) if path.exists() else _write(path, asked)
    repo = repository.of(plant, folder, clock)
    added = repo.init(plant.modalities)
    write_atomic(folder / ROOT, (repo.roles.folder / "metadata" / "1.root.json").read_bytes())
    credentials.create(plant, folder)
    return _lines(folder, plant, added)


def toml(asked: Asked) -> str:
    """The plant file, as text. JSON's strings and lists are TOML's."""
    text = {name: msgspec.json.encode(value).decode() for name, value in msgspec.to_builtins(asked).items()}
    return f"""\
site = {text["site"]}
devices = {text["devices"]}
modalities = {text["modalities"]}

[broker]
port = {text["mqtt_port"]}

[hub]
port = {text["hub_port"]}
demo = {text["demo"]}
"""


def _write(path: Path, asked: Asked) -> PlantConfig:
    if not asked.site or not asked.devices:
        raise ConfigError(str(path), "is not there yet", "give --site and at least one --device")
    text = toml(asked)
    plant = config.loads(text, PlantConfig, str(path))
    write_atomic(path, text.encode())
    return plant


def _kept(path: Path, asked: Asked) -> PlantConfig:
    plant = config.load(path, PlantConfig)
    other = [name for name in asked.devices if name not in plant.devices]
    if other or asked.site not in ("", plant.site):
        told = f"is there already, for site {plant.site!r} with {', '.join(plant.devices)}"
        raise ConfigError(str(path), told, "add devices and modalities in that file, then run this again")
    return plant


def _lines(folder: Path, plant: PlantConfig, added: tuple[str, ...]) -> list[str]:
    keys = folder / plant.keys
    return [
        f"{folder / NAME}: site {plant.site}, modalities {', '.join(plant.modalities)}",
        f"repository {folder / plant.repository}: new roles {', '.join(added) or 'none, all keys kept'}",
        f"keep offline: {', '.join(str(keys / f'{role}.pem') for role in OFFLINE)} "
        "(needed again to add a modality, and once a year)",
        *(
            f"{device}: copy {folder / ROOT} and {credentials.path(plant, folder, device)} to it"
            for device in plant.devices
        ),
    ]
