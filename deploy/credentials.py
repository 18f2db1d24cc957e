"""Passwords of the broker's users: one random file each, readable by its owner only."""

from __future__ import annotations

import secrets
from pathlib import Path

from lineside.files import write_atomic
from lineside.plant import PlantConfig

BYTES = 24


def path(plant: PlantConfig, base: Path, user: str) -> Path:
    """Where a user's password stands; `base` is the folder of the plant file."""
    return base / plant.password_file(user)


def create(plant: PlantConfig, base: Path) -> tuple[str, ...]:
    """Give each user that has none a password; gives those users. Existing passwords are kept."""
    new = tuple(user for user in plant.users if not path(plant, base, user).exists())
    (base / plant.secrets).mkdir(parents=True, exist_ok=True, mode=0o700)
    for user in new:
        write_atomic(path(plant, base, user), f"{secrets.token_urlsafe(BYTES)}\n".encode(), mode=0o600)
    return new
