"""Whether a waiver says what was signed."""

from __future__ import annotations

from lineside import signature
from lineside.release import Waiver


def holds(waiver: Waiver) -> bool:
    """Whether its signature is of what it says, by the key that it names (Ed25519, RFC 8032)."""
    return signature.holds(waiver.key, waiver.signature, waiver.said)
