"""python-tuf's client, with three things that it leaves open.

What it has verified is on disk before it goes on, and a power cut leaves no stray files: python-tuf (7.0.1,
`_persist_file`) renames a temporary file of random name without fsync. After a power cut the newest timestamp may be an
empty file then: the client would believe the shipped root alone and take an older state of the repository for news, and
each cut would leave a file more. The power cuts of tests/powercut hold it to that.

A fast-forward is refused when it is tried. The specification (1.5.2) lets clients follow any version number and heals
them afterwards by new keys; a plant counts one up a day and a publication, so a million at once is no plant.

A key that is known but may not sign what it signed is told apart from one that nobody knows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from securesystemslib.exceptions import UnverifiedSignatureError
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Key, Metadata, Snapshot, Targets, Timestamp
from tuf.ngclient import Updater

from lineside.files import write_atomic

MOST_STEP = 1_000_000


class FastForwardError(RepositoryError):
    """Version numbers that no honest plant reaches: once followed, the plant's own would look like old ones."""


class MisusedKeyError(UnsignedMetadataError):
    """Metadata signed with a key of this plant that may not, or no longer, sign it, or by too few of those that may."""


class Client(Updater):
    """Metadata that was accepted stays accepted: older metadata is refused also after a power cut."""

    _newest = b""

    @contextlib.contextmanager
    def keys_told(self) -> Iterator[None]:
        """Raises MisusedKeyError instead of UnsignedMetadataError where the plant's own keys did sign."""
        try:
            yield
        except UnsignedMetadataError as error:
            if self._newest and self._signed_by_known(Metadata[Any].from_bytes(self._newest)):
                raise MisusedKeyError(str(error)) from error
            raise

    def _signed_by_known(self, metadata: Metadata[Any]) -> bool:
        """Whether any key that this device ever was shown by those who may has signed it."""
        folder, keys = Path(self._dir), dict[str, Key]()
        for path in folder.glob("root_history/*.root.json"):
            keys |= Metadata[Any].from_file(str(path)).signed.keys
        if (folder / "targets.json").exists():
            delegations = Metadata[Targets].from_file(str(folder / "targets.json")).signed.delegations
            keys |= delegations.keys if delegations else {}
        for keyid in metadata.signatures.keys() & keys:
            with contextlib.suppress(UnverifiedSignatureError):
                keys[keyid].verify_signature(metadata.signatures[keyid], metadata.signed_bytes)
                return True
        return False

    def _download_metadata(self, rolename: str, length: int, version: int | None = None) -> bytes:
        self._newest = super()._download_metadata(rolename, length, version)
        return self._newest

    def _persist_metadata(self, rolename: str, data: bytes) -> None:
        known = Path(self._dir) / f"{rolename}.json"
        if known.exists():
            before = _versions(Metadata[Any].from_file(str(known)).signed)
            for name, version in _versions(Metadata[Any].from_bytes(data).signed).items():
                if version - before.get(name, version) > MOST_STEP:
                    told = f"{name} of {rolename} went from version {before[name]} to {version}"
                    raise FastForwardError(f"{told}, limit {MOST_STEP} at once")
        super()._persist_metadata(rolename, data)

    def _persist_file(self, filename: str, data: bytes) -> None:
        write_atomic(Path(filename), data)


def _versions(signed: Any) -> dict[str, int]:
    """What a role's metadata says of versions: its own, and of those that it lists."""
    found = {"version": signed.version}
    if isinstance(signed, Timestamp):
        found["snapshot.json"] = signed.snapshot_meta.version
    if isinstance(signed, Snapshot):
        found |= {name: meta.version for name, meta in signed.meta.items()}
    return found
