"""When what is signed for a time ends: the repository's metadata, and certificates that the plant file names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
from cryptography import x509

from lineside import expiry
from lineside.clock import NS
from lineside.plant import PlantConfig

DAY_NS = 86_400 * NS
NUMBERED = re.compile(r"(?:(\d+)\.)?([a-z0-9_-]+)\.json")


@dataclass(frozen=True)
class Expiry:
    """One thing that ends: `what` is a role of the repository or a certificate's file; `left_days` below 0: it has."""

    what: str
    ends_ns: int
    left_days: float
    level: expiry.Level


class _Signed(msgspec.Struct, rename={"days": expiry.FIELD}):
    expires: datetime
    days: float = 0.0


class _File(msgspec.Struct):
    signed: _Signed


def expiries(plant: PlantConfig, base: Path, now_ns: int) -> list[Expiry]:
    """What ends first is first. Files that are not there or cannot be read have no row: others tell of them."""
    found = [
        *_metadata(base / plant.repository / "metadata", plant, now_ns),
        *_certificates(plant, base, now_ns),
    ]
    return sorted(found, key=lambda each: each.ends_ns)


def _metadata(folder: Path, plant: PlantConfig, now_ns: int) -> list[Expiry]:
    """Of each role the newest file; versions before it are kept for devices that sleep."""
    newest: dict[str, tuple[int, Path]] = {}
    for path in folder.glob("*.json"):
        if found := NUMBERED.fullmatch(path.name):
            newest[found[2]] = max(newest.get(found[2], (-1, path)), (int(found[1] or 0), path))
    rows = []
    for role, (_, path) in newest.items():
        try:
            signed = msgspec.json.decode(path.read_bytes(), type=_File).signed
        except (OSError, msgspec.DecodeError):
            continue
        rows.append(_row(role, round(signed.expires.timestamp() * NS), signed.days or plant.trust.days(role), now_ns))
    return rows


def _certificates(plant: PlantConfig, base: Path, now_ns: int) -> list[Expiry]:
    rows = []
    for name in dict.fromkeys((plant.broker.cert_file, plant.broker.ca_file, plant.hub.cert_file)):
        try:
            made = x509.load_pem_x509_certificate((base / name).read_bytes()) if name else None
        except (OSError, ValueError):
            continue
        if made is not None:
            whole = made.not_valid_after_utc - made.not_valid_before_utc
            rows.append(_row(name, round(made.not_valid_after_utc.timestamp() * NS), whole.days, now_ns))
    return rows


def _row(what: str, ends_ns: int, whole_days: float, now_ns: int) -> Expiry:
    left_days = (ends_ns - now_ns) / DAY_NS
    return Expiry(what, ends_ns, left_days, expiry.level(left_days, whole_days))
