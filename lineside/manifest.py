"""What a device's signature on its manifest is of. Pure: keys stay with whoever has them."""

from __future__ import annotations

import msgspec

from lineside.messages import Manifest


def said(manifest: Manifest) -> bytes:
    """All that it says but the signature and its place in the outbox, as JSON with keys in order.

    >>> said(Manifest(device="edge-1", station="press", time_ns=1, agent="0.1", encoders={}, key="ab", seq=7))[:34]
    b'{"agent":"0.1","device":"edge-1","'
    """
    return msgspec.json.encode(msgspec.structs.replace(manifest, epoch=0, seq=0, signature=""), order="sorted")
