"""How long what this device last saw of the signed repository holds. Beyond it no update is taken; judging goes on."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import msgspec

from lineside import expiry
from lineside.clock import NS

TOP = ("root", "targets", "snapshot", "timestamp")
DAY_S = 86_400.0


class _Signed(msgspec.Struct, rename={"days": expiry.FIELD}):
    expires: datetime
    days: float = 0.0

    @property
    def since_ns(self) -> int:
        return round((self.expires.timestamp() - self.days * DAY_S) * NS)


class _File(msgspec.Struct):
    signed: _Signed


def problem(folder: Path, modalities: Iterable[str], now_ns: int) -> str:
    """What of the verified metadata in `folder` is past half of its time, the soonest to end; empty while nothing is.

    What was signed without saying for how long is told of only once it has ended.
    """
    told = []
    for role in (*TOP, *modalities):
        if signed := _read(folder / f"{role}.json"):
            left_days = (signed.expires.timestamp() - now_ns / NS) / DAY_S
            if expiry.level(left_days, signed.days) != "fresh":
                told.append((left_days, role, expiry.level(left_days, signed.days)))
    if not told:
        return ""
    left_days, role, level = min(told)
    when = f"expires in {left_days:.1f} days" if left_days > 0 else f"expired {-left_days:.1f} days ago"
    mend = "check the network, and that `lineside deploy refresh` runs at the plant"
    return f"repository: {level}, {role} as last seen {when}; judging goes on, only updates stop; {mend}"


def signed_ns(folder: Path) -> int:
    """When the newest of the verified metadata in `folder` was signed, by the plant's clock; 0 where none tells."""
    known = (_read(folder / f"{role}.json") for role in TOP)
    return max((signed.since_ns for signed in known if signed and signed.days), default=0)


def _read(path: Path) -> _Signed | None:
    """Metadata that was verified before it was written here; a damaged file is fetched again with the next look."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_File).signed
    except (OSError, msgspec.DecodeError):
        return None
