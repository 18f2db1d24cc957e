"""The device's own key, and its signed word on what it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge.config import DeviceSettings
from lineside import __version__
from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.manifest import said
from lineside.messages import Installed, Manifest

FILE = "device.pem"


@dataclass(frozen=True)
class Identity:
    """Who this device is: an Ed25519 key (RFC 8032) that never leaves it."""

    _key: Ed25519PrivateKey

    @classmethod
    def of(cls, state_dir: Path) -> Identity:
        """The key that is kept in `state_dir`; made at the first start, readable by the agent alone.

        Raises LinesideError for a file that is no such key: a new one would be refused by the plant, which knows the
        old one. Raises OSError where it can be neither read nor written.
        """
        path = state_dir / FILE
        if not path.exists():
            write_atomic(path, _pem(Ed25519PrivateKey.generate()), mode=0o600)
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            mend = f"restore it, or delete it here and secrets/{{device}}.pub in the plant's folder: {path}"
            raise LinesideError(FILE, f"is no key ({error})", mend) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise LinesideError(FILE, "is a key of another kind than Ed25519", "delete it: a new one is made")
        return cls(key)

    @property
    def public(self) -> str:
        """The public half, hexadecimal."""
        raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
        return self._key.public_key().public_bytes(*raw).hex()

    def manifest(self, device: DeviceSettings, encoders: Mapping[str, Installed], time_ns: int) -> Manifest:
        """What this device runs now, signed."""
        told = Manifest(
            device=device.id,
            station=device.station,
            time_ns=time_ns,
            agent=__version__,
            encoders=dict(encoders),
            key=self.public,
        )
        return msgspec.structs.replace(told, signature=self._key.sign(said(told)).hex())


def _pem(key: Ed25519PrivateKey) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
