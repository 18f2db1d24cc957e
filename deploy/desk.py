"""What a command of `lineside deploy` opens: the plant, its repository, the way to its devices; and how it tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from deploy import repository
from deploy.conductor import Conductor
from deploy.repository import Repository
from lineside import config
from lineside.clock import Clock, SystemClock
from lineside.errors import ConfigError
from lineside.operator import Operator, Outcome
from lineside.pins import Pins
from lineside.plant import PlantConfig
from lineside.rollout_records import Records

PLANT = Path("plant.toml")
PlantFile = Annotated[Path, typer.Option("--config", help="The plant file.")]
Devices = Annotated[list[str] | None, typer.Option("--device", help="Only this device (again for more); default: all.")]
Modality = Annotated[str, typer.Option("--modality", help="The modality to change.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
WaitS = Annotated[float, typer.Option("--wait-s", help="How long a device may take to answer, in seconds.")]


@dataclass(frozen=True)
class Desk:
    """One plant, whose file stands in `base`."""

    plant: PlantConfig
    base: Path
    repository: Repository
    clock: Clock

    @property
    def records(self) -> Records:
        """The plant's rollouts."""
        return Records(self.base / self.plant.state / "rollouts")

    @property
    def pins(self) -> Pins:
        """Devices' keys; the first one that is seen of a device is kept."""
        return Pins(self.base / self.plant.secrets, keeps=True)

    def operator(self) -> Operator:
        """The way to the plant's devices."""
        return Operator(self.plant.connection("operator"), self.base, self.plant.site, self.clock)

    def conductor(self, operator: Operator) -> Conductor:
        """What a rollout is conducted with; what an earlier command left half done is done."""
        made = Conductor(self.plant.devices, self.records, self.repository, operator, self.pins, self.clock)
        made.heal()
        return made

    def chosen(self, asked: Sequence[str] | None) -> list[str]:
        """The devices that were asked for, by default all. Raises ConfigError for one that the plant does not have."""
        if unknown := [device for device in asked or () if device not in self.plant.devices]:
            known = ", ".join(self.plant.devices)
            raise ConfigError(unknown[0], "is no device of this plant", f"known are {known}")
        return list(asked or self.plant.devices)


def sit(config_file: Path) -> Desk:
    """Open the desk of the plant whose file is given."""
    plant, clock = config.load(config_file, PlantConfig), SystemClock()
    return Desk(plant, config_file.parent, repository.of(plant, config_file.parent, clock), clock)


def outcomes_told(outcomes: Sequence[Outcome], what: str) -> list[str]:
    """One line a device."""
    return [f"{one.device}  {what}: {one.status}{f' ({one.reason})' if one.reason else ''}" for one in outcomes]


def tell(value: object, as_json: bool, lines: Sequence[str]) -> None:
    """Print what a command has to say: one JSON line, or lines for people."""
    if as_json:
        typer.echo(msgspec.json.encode(value).decode())
        return
    for line in lines:
        typer.echo(line)
