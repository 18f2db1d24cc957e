"""Whether a waiver says what was signed."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from lineside.release import Waiver


def holds(waiver: Waiver) -> bool:
    """Whether its signature is of what it says, by the key that it names (Ed25519, RFC 8032)."""
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(waiver.key))
        public.verify(bytes.fromhex(waiver.signature), waiver.said)
    except (InvalidSignature, ValueError):
        return False
    return True
