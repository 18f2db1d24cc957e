"""The encoders that a device takes no more by itself, in one file.

{state_dir}/declined.json
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from lineside.files import write_atomic

log = logging.getLogger(__name__)
KEPT = 32


class Declined:
    """By SHA-256 the rollout under which an encoder failed or was rolled back from; empty outside any rollout."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "declined.json"

    @property
    def known(self) -> dict[str, str]:
        """What was declined, the latest last."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, str])
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError as error:
            log.warning("%s is damaged (%s) and begun anew: declined versions may come back once", self._path, error)
            return {}

    def forget(self, taken: Collection[str]) -> None:
        """These were taken after all. Raises OSError."""
        known = self.known
        left = {sha256: rollout for sha256, rollout in known.items() if sha256 not in taken}
        if left != known:
            self._write(left)

    def add(self, declined: Mapping[str, str]) -> None:
        """Decline these too. Raises OSError."""
        known = {sha256: rollout for sha256, rollout in self.known.items() if sha256 not in declined}
        self._write(dict([*known.items(), *declined.items()][-KEPT:]))

    def _write(self, declined: Mapping[str, str]) -> None:
        write_atomic(self._path, msgspec.json.encode(declined))
