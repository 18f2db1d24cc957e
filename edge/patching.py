"""A new encoder file out of one that lies on the device already: less to fetch, and checked like a whole one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from edge.slots import Slot
from lineside import delta
from lineside.errors import ReleaseError
from lineside.targets import delta_name

log = logging.getLogger(__name__)


def patched(
    target: str, sha256: str, slots: Iterable[Slot | None], fetch: Callable[[str], bytes | None]
) -> bytes | None:
    """The encoder file of `target`, whose signed hash is `sha256`, rebuilt from a slot that a signed delta is from.

    `fetch` gives the verified bytes of a target, None for one that is not there or does not come. None where nothing
    fits, for whatever reason: the whole file is fetched then.
    """
    for slot in slots:
        patch = fetch(delta_name(target, slot.sha256)) if slot is not None else None
        if slot is None or patch is None:
            continue
        try:
            made = delta.apply(slot.path.read_bytes(), patch, sha256)
        except (ReleaseError, OSError) as error:
            log.warning("%s: the delta from version %d is of no use (%s)", target, slot.version, error)
            continue
        log.info("%s: rebuilt from version %d and %d bytes", target, slot.version, len(patch))
        return made
    return None
