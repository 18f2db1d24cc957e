"""Who keeps which file of a plant, and when it is needed: the list that `lineside deploy init` prints. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from deploy.certificates import FOLDER as TLS
from lineside.plant import PlantConfig


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One file, seen from the plant file's folder; `place` is where it belongs, `needed` when and for what."""

    path: str
    mode: str
    place: str
    needed: str


def rows(plant: PlantConfig, root_keys: Sequence[str], threshold: int) -> list[Row]:
    """The whole list; `root_keys` are the names of root's key files, of which `threshold` must sign."""
    several = len(root_keys) > 1
    place = "offline, each on a medium of its own" if several else "offline"
    needed = f"{threshold} of {len(root_keys)}: to change keys, and once a year"
    kept = [_secret(f"{plant.keys}/{name}", place, needed) for name in root_keys]
    needed = "to add a modality, to change its keys, to answer for a failed gate, and once a year"
    kept.append(_secret(f"{plant.keys}/targets.pem", "offline", needed))
    for modality in plant.modalities:
        place = f"with whoever publishes {modality} encoders"
        kept.append(_secret(f"{plant.keys}/{modality}.pem", place, "each publication, rollout and step back"))
    for role in ("snapshot", "timestamp"):
        needed = "each publication, and `lineside deploy refresh` each day"
        kept.append(_secret(f"{plant.keys}/{role}.pem", "plant server", needed))
    kept.append(_secret(plant.password_file("hub"), "plant server", "`lineside hub run`"))
    kept.append(_secret(plant.password_file("operator"), "with whoever commands devices", "`lineside deploy …`"))
    for device in plant.devices:
        kept.append(
            _secret(plant.password_file(device), f"copy to {device}", "[broker] password_file of its device file")
        )
    kept.append(Row(path="root.json", mode="0644", place="copy to each device", needed="before its first update"))
    return kept + (_tls() if plant.broker.cert_file == f"{TLS}/server.crt" else [])


def _tls() -> list[Row]:
    return [
        _secret(f"{TLS}/ca.key", "offline", "to renew server.crt, every two years"),
        _secret(f"{TLS}/server.key", "plant server", "`lineside hub run`"),
        Row(
            path=f"{TLS}/ca.crt", mode="0644", place="copy to each device", needed="[broker] ca_file of its device file"
        ),
    ]


def _secret(path: str, place: str, needed: str) -> Row:
    return Row(path=path, mode="0600", place=place, needed=needed)
