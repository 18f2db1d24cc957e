"""What shall lie where for a hub that runs as a service, and who of a plant's folder may read and write what."""

from __future__ import annotations

from pathlib import Path

from lineside.errors import ConfigError
from lineside.parts import HUB, PLANT, Own, Put, reaching, started, units_of
from lineside.plant import PlantConfig

HUB_USER, SIGNER, GROUP = "lineside-hub", "lineside-trainer", "lineside-plant"


def wanted(plant: PlantConfig, folder: str, executable: str, systemd: int) -> tuple[list[Put], list[Own]]:
    """All that shall lie on a machine for the plant in `folder`, as seen from the machine's root, and its owners.

    The hub serves the repository but cannot read a key; who signs (the nightly loop, rollouts, `lineside deploy
    refresh`, a person by `sudo -u lineside-trainer`) cannot write the store. Raises ConfigError where the services
    could not find the plant.
    """
    if folder != PLANT:
        mend = f"move the folder of the plant file: mv {folder} {PLANT}"
        raise ConfigError(folder, f"is not where the services look for a plant ({PLANT})", mend)
    for name in (plant.keys, plant.secrets, plant.repository, plant.state, plant.hub.labelled):
        if name.startswith("/") or ".." in Path(name).parts:
            raise ConfigError(name, "lies outside the plant file's folder", "keep what belongs to a plant together")
    rollouts = "lineside-rollout.service"
    links = [started("lineside-hub.service"), started("lineside-refresh.timer", "timers"), started(rollouts)]
    owns = [
        Own(PLANT, HUB_USER, GROUP, 0o770),
        Own(f"{PLANT}/plant.toml", "root", GROUP, 0o640),
        Own(f"{PLANT}/{plant.secrets}", HUB_USER, GROUP, 0o770),
        Own(f"{PLANT}/{plant.keys}", SIGNER, SIGNER, 0o700),
        Own(f"{PLANT}/{plant.repository}", SIGNER, GROUP, 0o750),
    ]
    return [*units_of(HUB, executable, systemd), reaching(rollouts, plant.broker.name), *links], owns
