"""Begin a plant: its file, keys, repository and passwords; and say what goes where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
from tuf.api.metadata import Role

from deploy import certificates, checklist, credentials, keys, repository
from deploy.repository import Repository
from lineside import config
from lineside.clock import Clock
from lineside.errors import ConfigError
from lineside.files import write_atomic
from lineside.plant import PlantConfig

NAME = "plant.toml"
ROOT = "root.json"
TLS_FILES = f"""\
cert_file = "{certificates.FOLDER}/server.crt"
key_file = "{certificates.FOLDER}/server.key"
ca_file = "{certificates.FOLDER}/ca.crt"
"""


@dataclass(frozen=True)
class Asked:
    """What the command line says of a plant; it counts only where no plant file is there yet."""

    site: str
    devices: tuple[str, ...]
    modalities: tuple[str, ...]
    mqtt_port: int
    hub_port: int
    demo: bool
    listen: str = "127.0.0.1"
    host: str = ""
    tls: bool = False


@dataclass(frozen=True)
class Begun:
    """What was done, in lines, and who keeps which file from now on."""

    told: list[str]
    keep: list[checklist.Row]


def begin(folder: Path, asked: Asked, clock: Clock) -> Begun:
    """Make what is missing, keep what is there.

    Raises ConfigError when there is no plant file and no site or device is given, or when a given one is not in the
    plant file that is there.
    """
    path = folder / NAME
    plant = _kept(path, asked) if path.exists() else _write(path, asked)
    repo = repository.of(plant, folder, clock)
    added = repo.init(plant.modalities)
    hand_out(repo, folder)
    credentials.create(plant, folder)
    if asked.tls:
        certificates.create(folder / certificates.FOLDER, plant.site, (plant.broker.name,), clock)
    for private in (plant.keys, plant.secrets):
        (folder / private).chmod(0o700)
    root = repo.roles.read("root").signed.roles["root"]
    names = [path.name for path in keys.files(folder / plant.keys, "root")]
    names = names or [f"root-{number + 1}.pem" for number in range(len(root.keyids))]
    keep = checklist.rows(plant, names, root.threshold)
    return Begun(_lines(folder, plant, added, keep) + _advice(plant, root, asked.tls), keep)


def hand_out(repo: Repository, folder: Path) -> None:
    """Put the newest root where it is copied to devices from: one that begins with it trusts no key before it.

    It is followed from the one that is there, as a device would: another may stand in the web server's folder.
    """
    path = folder / ROOT
    if not path.exists():
        write_atomic(path, (repo.roles.folder / "metadata" / "1.root.json").read_bytes())
    write_atomic(path, repo.roles.newest_root(path.read_bytes()))


def toml(asked: Asked) -> str:
    """The plant file, as text. JSON's strings and lists are TOML's."""
    text = {name: msgspec.json.encode(value).decode() for name, value in msgspec.to_builtins(asked).items()}
    return f"""\
site = {text["site"]}
devices = {text["devices"]}
modalities = {text["modalities"]}

[broker]
port = {text["mqtt_port"]}
listen = {text["listen"]}
host = {text["host"]}
{TLS_FILES if asked.tls else ""}
[hub]
port = {text["hub_port"]}
demo = {text["demo"]}
evidence = {text["demo"]}
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


def _lines(folder: Path, plant: PlantConfig, added: tuple[str, ...], keep: list[checklist.Row]) -> list[str]:
    return [
        f"{folder / NAME}: site {plant.site}, modalities {', '.join(plant.modalities)}",
        f"repository {folder / plant.repository}: new roles {', '.join(added) or 'none, all keys kept'}",
        f"keep offline: {', '.join(str(folder / row.path) for row in keep if row.place.startswith('offline'))}",
        *(
            f"{device}: copy {folder / ROOT} and {credentials.path(plant, folder, device)} to it"
            for device in plant.devices
        ),
        f"access list: `lineside hub run` writes it from {NAME}, each device in its own subtree",
    ]


def _advice(plant: PlantConfig, root: Role, tls: bool) -> list[str]:
    """What the plant has otherwise than the plant file says."""
    told = (len(root.keyids), root.threshold)
    asked = (plant.trust.root_keys, plant.trust.root_threshold)
    advice = []
    if told != asked:
        has, wanted = (f"{threshold} of {number} keys" for number, threshold in (told, asked))
        advice.append(f"root is signed by {has}, [trust] says {wanted}: run `lineside deploy rotate --role root`")
    if tls and not plant.broker.cert_file:
        advice.append(f"the broker has no TLS yet: put {', '.join(TLS_FILES.splitlines())} into [broker]")
    return advice
