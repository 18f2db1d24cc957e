"""Each device's own key as it was seen first, kept beside the plant's secrets: who signs as it later must be it.

{secrets}/{device}.pub      the public half of its Ed25519 key, hexadecimal
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lineside import manifest as manifests
from lineside import signature
from lineside.files import write_atomic
from lineside.messages import Manifest


@dataclass(frozen=True)
class Pins:
    """The kept keys. `keeps` is whether the first key seen is kept: the operator's side does, the hub only reads."""

    folder: Path
    keeps: bool = False

    def path(self, device: str) -> Path:
        """Where the key of a device is kept."""
        return self.folder / f"{device}.pub"

    def problem(self, device: str, manifest: Manifest) -> str:
        """Why what came as the word of `device` is not believed, with the mend; empty when it is."""
        if manifest.device != device:
            return f"its manifest is of {manifest.device}"
        if not signature.holds(manifest.key, manifest.signature, manifests.said(manifest)):
            return "its manifest is not signed by the key that it names"
        kept = self._kept(device)
        if not kept and not self.keeps:
            return f"no key of {device} is kept yet; `lineside deploy status` keeps the first one that it sees"
        if not kept:
            write_atomic(self.path(device), f"{manifest.key}\n".encode())
        elif kept != manifest.key:
            return f"signed by another key than at first; delete {self.path(device)} if the device was really replaced"
        return ""

    def _kept(self, device: str) -> str:
        try:
            return self.path(device).read_text().strip()
        except FileNotFoundError:
            return ""
