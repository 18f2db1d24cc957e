"""What a restart must not make the device forget of its encoders' changes, in one file.

{state_dir}/rollout.json
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from edge.change import Change
from lineside.files import write_atomic

log = logging.getLogger(__name__)
FILE = "rollout.json"


class Since(msgspec.Struct, frozen=True):
    """Since when an encoder (SHA-256) is in use."""

    sha256: str
    since_ns: int


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """The change in progress, the last one that ended for each modality, and since when each encoder is in use."""

    change: Change | None = None
    ended: dict[str, Change] = {}
    since: dict[str, Since] = {}

    @classmethod
    def load(cls, state_dir: Path) -> Progress:
        """What was saved; nothing where there is none, or a damaged one: then the repository is looked at anew."""
        path = state_dir / FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return cls()
        except msgspec.DecodeError as error:
            log.warning("%s is damaged (%s): a change in progress is begun anew", path, error)
            return cls()

    def save(self, state_dir: Path) -> None:
        """Write it, whole. Raises OSError."""
        write_atomic(state_dir / FILE, msgspec.json.encode(self))

    def told(self, now_ns: int) -> str:
        """The change in progress for a person; empty when there is none.

        >>> Progress().told(0)
        ''
        """
        if (change := self.change) is None:
            return ""
        what = ", ".join(f"{modality}-{choice.version}" for modality, choice in change.choices.items())
        seconds = max(0, now_ns - change.since_ns) // 1_000_000_000
        told = f"{what} in {change.phase} for {seconds} s"
        return f"{told} ({change.reason})" if change.reason else told
