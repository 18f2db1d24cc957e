"""Whether bytes were signed by an Ed25519 key (RFC 8032). Needs `cryptography`, which deploy, hub and edge bring."""

from __future__ import annotations

import functools

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

REMEMBERED = 8192


@functools.lru_cache(REMEMBERED)  # a fleet's manifests are looked at again and again, and seldom change
def holds(key: str, signature: str, said: bytes) -> bool:
    """Whether `signature` is of what was said, by the public `key` (both hexadecimal); what is no key holds nothing.

    >>> holds("ab", "cd", b"anything")
    False
    """
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), said)
    except (InvalidSignature, ValueError):
        return False
    return True
