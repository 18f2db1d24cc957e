"""The signing roles of the repository: their keys, how long they hold, and the order in which they are written.

root and targets stay offline: they are needed to begin, to add a modality and once a year. A modality's own role
signs its encoders, so that no other modality's key can; snapshot and timestamp sign every publication.

    {keys}/{role}.pem                        Ed25519, PKCS8, mode 0600
    {folder}/metadata/{N}.{role}.json        every role but timestamp
    {folder}/metadata/timestamp.json         written last: what it names is the state, later files do not count yet
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.exceptions import Error as SigningError
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from lineside import targets
from lineside.clock import NS, Clock
from lineside.errors import ReleaseError
from lineside.files import write_atomic

OFFLINE = ("root", "targets")
ONLINE = ("snapshot", "timestamp")
HOLDS_DAYS = {"root": 365, "targets": 365, "snapshot": 30, "timestamp": 7}
MODALITY_HOLDS_DAYS = 365
RENEW_BEFORE_DAYS = 90


@dataclass(frozen=True)
class Roles:
    """The metadata in one repository folder and the keys in another."""

    folder: Path
    keys: Path
    clock: Clock

    def exist(self) -> bool:
        """Whether the repository was begun."""
        return (self.folder / "metadata" / "timestamp.json").is_file()

    def create(self) -> None:
        """Begin a repository: four keys and their metadata, version 1, no modality yet.

        Raises ReleaseError (check `keys`) when keys are there already: a second repository under the same keys would
        look like a rolled-back one to every device.
        """
        if there := sorted(path.name for path in self.keys.glob("*.pem")):
            mend = "restore the repository from a backup, or move the keys away to begin anew"
            raise ReleaseError("keys", str(self.keys), f"has {', '.join(there)} but {self.folder} is empty", mend)
        root = Metadata(Root(expires=self._expiry("root"), consistent_snapshot=True))
        for role in (*OFFLINE, *ONLINE):
            root.signed.add_key(self._new_key(role).public_key, role)
        first = Metadata(Targets(expires=self._expiry("targets"), delegations=Delegations({}, {})))
        self._write("root", root)
        self._write("targets", first)
        self._write("snapshot", Metadata(Snapshot(expires=self._expiry("snapshot"))))
        self._write("timestamp", Metadata(Timestamp(expires=self._expiry("timestamp"))))

    def add(self, modality: str) -> None:
        """Give a modality a key and a role of its own, which ends the search for its targets. Needs the targets key."""
        parent = self.read("targets")
        if parent.signed.delegations is None or parent.signed.delegations.roles is None:
            raise ReleaseError("metadata", "targets", "has no delegations", "restore the repository from a backup")
        parent.signed.delegations.roles[modality] = DelegatedRole(
            modality, [], 1, terminating=True, paths=[targets.paths(modality)]
        )
        signer = self.signer(modality) if self._pem(modality).exists() else self._new_key(modality)
        parent.signed.add_key(signer.public_key, modality)
        self.commit({modality: Metadata(Targets()), "targets": parent})

    def modalities(self) -> tuple[str, ...]:
        """The modalities that have a role."""
        delegations = self.read("targets").signed.delegations
        return tuple(delegations.roles) if delegations and delegations.roles else ()

    def read(self, role: str) -> Any:
        """The metadata of a role as the timestamp names it, checked against our own key where we have it.

        Raises ReleaseError (check `metadata` or `signature`) for a file that is not whole or that somebody else made:
        what stands in the web server's folder must not be signed again unseen.
        """
        if not self.exist():
            raise ReleaseError("missing", str(self.folder), "is no repository", "run `lineside deploy init`")
        path = self.folder / "metadata" / self._file(role)
        try:
            found: Metadata[Any] = Metadata.from_file(str(path))
            if self._pem(role).exists():
                key = self.signer(role).public_key
                key.verify_signature(found.signatures[key.keyid], found.signed_bytes)
        except KeyError:
            raise ReleaseError("signature", str(path), "is not signed by our key", "restore a backup") from None
        except SigningError as error:
            raise ReleaseError("signature", str(path), f"was changed ({error})", "restore a backup") from error
        except RepositoryError as error:
            raise ReleaseError("metadata", str(path), f"is not whole ({error})", "restore a backup") from error
        return found

    def commit(self, changed: Mapping[str, Any]) -> None:
        """Sign and write changed roles under their next versions, then snapshot, then timestamp.

        Until the last rename every device sees the old state.
        """
        snapshot, timestamp = self.read("snapshot"), self.read("timestamp")
        for role, metadata in changed.items():
            self._renew(role, metadata)
            snapshot.signed.meta[f"{role}.json"] = MetaFile(version=metadata.signed.version)
        self._renew("snapshot", snapshot)
        timestamp.signed.snapshot_meta = MetaFile(version=snapshot.signed.version)
        self._renew("timestamp", timestamp)

    def refresh(self) -> dict[str, float]:
        """Sign snapshot and timestamp anew, and each other role that ends soon and whose key is here.

        Gives the days that each role holds now; one that stays below RENEW_BEFORE_DAYS waits for its key.
        """
        due = {role: found for role in ("targets", *self.modalities()) if self._is_due(role, found := self.read(role))}
        root = self.read("root")
        if self._is_due("root", root):
            self._renew("root", root)
        self.commit(due)
        return {role: self._days_left(self.read(role)) for role in ("root", "targets", *self.modalities(), *ONLINE)}

    def signer(self, role: str) -> CryptoSigner:
        """The private key of a role. Raises ReleaseError (check `keys`) when it is not on this machine."""
        try:
            return CryptoSigner(load_pem_private_key(self._pem(role).read_bytes(), None))
        except (OSError, ValueError) as error:
            mend = "bring the key from where it is kept (offline keys: root, targets)"
            raise ReleaseError("keys", str(self._pem(role)), f"cannot be used ({error})", mend) from error

    def check_keys(self, modality: str) -> None:
        """Make sure, before anything is written, that a modality's change can be signed to the end."""
        for role in (modality, *ONLINE):
            self.signer(role)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other publishers on this machine waiting."""
        self.keys.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.keys / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _new_key(self, role: str) -> CryptoSigner:
        made = CryptoSigner.generate_ed25519()
        write_atomic(self._pem(role), made.private_bytes, mode=0o600)
        return made

    def _renew(self, role: str, metadata: Any) -> None:
        metadata.signed.version += 1
        metadata.signed.expires = self._expiry(role)
        self._write(role, metadata)

    def _write(self, role: str, metadata: Any) -> None:
        metadata.sign(self.signer(role))
        name = "timestamp.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
        write_atomic(self.folder / "metadata" / name, metadata.to_bytes(JSONSerializer(validate=True)))

    def _file(self, role: str) -> str:
        """The file that holds the state of a role now."""
        if role == "timestamp":
            return "timestamp.json"
        if role == "root":
            return f"{max(int(p.name.split('.')[0]) for p in (self.folder / 'metadata').glob('*.root.json'))}.root.json"
        if role == "snapshot":
            return f"{self.read('timestamp').signed.snapshot_meta.version}.snapshot.json"
        return f"{self.read('snapshot').signed.meta[f'{role}.json'].version}.{role}.json"

    def _pem(self, role: str) -> Path:
        return self.keys / f"{role}.pem"

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.clock.now_ns() / NS, timezone.utc).replace(microsecond=0)

    def _expiry(self, role: str) -> datetime:
        return self._now() + timedelta(days=HOLDS_DAYS.get(role, MODALITY_HOLDS_DAYS))

    def _days_left(self, metadata: Any) -> float:
        left: timedelta = metadata.signed.expires - self._now()
        return left / timedelta(days=1)

    def _is_due(self, role: str, metadata: Any) -> bool:
        return self._pem(role).exists() and self._days_left(metadata) < RENEW_BEFORE_DAYS
