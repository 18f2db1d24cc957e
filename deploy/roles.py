"""The signing roles of the repository: their keys, how long they hold, and the order in which they are written.

root and targets stay offline: they are needed to begin, to add a modality, to change keys and once a year; of root's
several keys a threshold must sign (plant file, [trust]). A modality's own role signs its encoders, so that no other
modality's key can; snapshot and timestamp sign every publication.

    {keys}/                                  the private keys (deploy.keys)
    {folder}/metadata/{N}.{role}.json        every role but timestamp
    {folder}/metadata/timestamp.json         written last: what it names is the state, later files do not count yet
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from securesystemslib.exceptions import Error as SigningError
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, Role, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from deploy import keys
from lineside import expiry, targets
from lineside.clock import NS, Clock
from lineside.errors import ReleaseError
from lineside.files import make_folder, sync_folder, write_atomic
from lineside.plant import TrustSettings

OFFLINE = ("root", "targets")
ONLINE = ("snapshot", "timestamp")


@dataclass(frozen=True)
class Hold:
    """For how many days a role's metadata holds now, of how many it was signed for, and whether that is soon over."""

    days: float
    of_days: int
    level: expiry.Level


@dataclass(frozen=True)
class Roles:
    """The metadata in one repository folder and the keys in another."""

    folder: Path
    keys: Path
    clock: Clock
    trust: TrustSettings = field(default_factory=TrustSettings)

    def exist(self) -> bool:
        """Whether the repository was begun."""
        return (self.folder / "metadata" / "timestamp.json").is_file()

    def begin(self) -> None:
        """Make the four roles' keys and their metadata, version 1, no modality yet; what was begun is left as it is.

        One that was cut goes on with the keys that it had made. Raises ReleaseError (check `keys`) for any others: a
        second repository under the same keys would look like a rolled-back one to every device.
        """
        mark = self.keys / ".beginning"
        if not self.exist():
            there = sorted(path.name for path in self.keys.glob("*.pem"))
            if there and not mark.exists():
                mend = "restore the repository from a backup, or move the keys away to begin anew"
                raise ReleaseError("keys", str(self.keys), f"has {', '.join(there)} but {self.folder} is empty", mend)
            write_atomic(mark, b"")
            self._create()
        if mark.exists():
            mark.unlink()
            sync_folder(self.keys)  # else keys without a repository could be taken for a beginning later

    def _create(self) -> None:
        root = Metadata(Root(consistent_snapshot=True))
        for number in range(1, self.trust.root_keys + 1):
            root.signed.add_key(keys.make(self.keys / f"root-{number}.pem").public_key, "root")
        root.signed.roles["root"].threshold = self.trust.root_threshold
        for role in ("targets", *ONLINE):
            root.signed.add_key(self._key(role).public_key, role)
        first: list[tuple[str, Metadata[Any]]] = [
            ("root", root),
            ("targets", Metadata(Targets(delegations=Delegations({}, {})))),
            ("snapshot", Metadata(Snapshot())),
            ("timestamp", Metadata(Timestamp())),
        ]
        for role, metadata in first:
            self._sign(role, metadata)
            self._put(role, metadata)

    def add(self, modality: str) -> None:
        """Give a modality a key and a role of its own, which ends the search for its targets. Needs the targets key."""
        parent = self.read("targets")
        if parent.signed.delegations is None or parent.signed.delegations.roles is None:
            raise ReleaseError("metadata", "targets", "has no delegations", "restore the repository from a backup")
        parent.signed.delegations.roles[modality] = DelegatedRole(
            modality, [], 1, terminating=True, paths=[targets.paths(modality)]
        )
        parent.signed.add_key(self._key(modality).public_key, modality)
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
            ours = [keys.load(key).public_key for key in keys.settled(self.keys, role)]
            signed = [key for key in ours if key.keyid in found.signatures]
            if ours and not signed:
                mend = "restore a backup, or take away a key that was revoked"
                raise ReleaseError("signature", str(path), "is not signed by our key", mend)
            for key in signed:
                key.verify_signature(found.signatures[key.keyid], found.signed_bytes)
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
            snapshot.signed.meta[f"{role}.json"] = self._renew(role, metadata)
        timestamp.signed.snapshot_meta = self._renew("snapshot", snapshot)
        self._renew("timestamp", timestamp)

    def refresh(self) -> dict[str, Hold]:
        """Sign snapshot and timestamp anew, and each other role of whose time half is over and whose keys are here.

        Gives how long each role holds now; one that is still past half of its time waits for its keys.
        """
        self.require(*ONLINE)
        due = {role: found for role in ("targets", *self.modalities()) if self._is_due(role, found := self.read(role))}
        if self._is_due("root", root := self.read("root")):
            self.renew_root(root)
        self.commit(due)
        return self.holds()

    def holds(self) -> dict[str, Hold]:
        """How long each role holds from now."""
        return {role: self._hold(role, self.read(role)) for role in ("root", "targets", *self.modalities(), *ONLINE)}

    def renew_root(self, root: Metadata[Root]) -> None:
        """Sign and write the next root. Raises ReleaseError (check `keys`) when devices could not follow to it.

        It needs the threshold of the root before it and its own (specification 5.3.4); keys of both sign it.
        """
        before = self.read("root").signed
        self._prepare("root", root)
        for judge in (before, root.signed):
            if not (result := judge.get_verification_result("root", root.signed_bytes, root.signatures)):
                told = f"{len(result.signed)} of the {result.threshold} keys that must sign a new root are here"
                raise ReleaseError("keys", str(self.keys), told, "bring root-*.pem from where they are kept")
        self._put("root", root)

    def newest_root(self, trusted: bytes) -> bytes:
        """The last root that a client follows to from a trusted one (specification 5.3).

        Raises ReleaseError (check `signature`) for a next one that such a client refuses.
        """
        root: Metadata[Root] = Metadata.from_bytes(trusted)
        while (path := self.folder / "metadata" / f"{root.signed.version + 1}.root.json").exists():
            trusted = path.read_bytes()
            before, root = root, Metadata.from_bytes(trusted)
            try:
                for judge in (before.signed, root.signed):
                    judge.verify_delegate("root", root.signed_bytes, root.signatures)
            except RepositoryError as error:
                raise ReleaseError("signature", str(path), f"is not ours ({error})", "restore a backup") from error
        return trusted

    def settle(self, role: str) -> None:
        """After a change of keys: the new key files take the names of the old ones, which are removed."""
        delegator = self.read("targets" if role in self.modalities() else "root").signed
        keys.settle(self.keys, role, delegator.get_delegated_role(role).keyids)

    def signer(self, role: str) -> CryptoSigner:
        """The private key of a role. Raises ReleaseError (check `keys`) when it is not on this machine."""
        return keys.signers(self.keys, role)[0]

    def check_keys(self, modality: str) -> None:
        """Make sure, before anything is written, that a modality's change can be signed to the end."""
        self.require(modality, *ONLINE)

    def require(self, *roles: str) -> None:
        """Raise ReleaseError (check `keys`) where a role could not be signed as its delegator wants it."""
        for role in roles:
            keys.signers(self.keys, role)
            if self._lacks(role):
                told = f"{role} needs {self._lacks(role)} more of the keys that count for it"
                raise ReleaseError("keys", str(self.keys), told, "bring them from where they are kept")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other publishers on this machine waiting."""
        make_folder(self.keys)
        self.keys.chmod(0o700)
        with (self.keys / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _key(self, role: str) -> CryptoSigner:
        """The key of a role that has one, made if it is not there."""
        return keys.make(self.keys / f"{role}.pem")

    def _renew(self, role: str, metadata: Any) -> MetaFile:
        """Write the next version; gives how it is to be listed: with length and hash, so that nothing else passes."""
        self._prepare(role, metadata)
        return MetaFile.from_data(metadata.signed.version, self._put(role, metadata), ["sha256"])

    def _prepare(self, role: str, metadata: Any) -> None:
        """The next version, for as long as the plant file says, signed by every key that is here."""
        metadata.signed.version += 1
        self._sign(role, metadata)

    def _sign(self, role: str, metadata: Any) -> None:
        metadata.signed.expires = self._now() + timedelta(days=self.trust.days(role))
        metadata.signed.unrecognized_fields[expiry.FIELD] = self.trust.days(role)
        metadata.signatures.clear()
        for signer in keys.signers(self.keys, role):
            metadata.sign(signer, append=True)

    def _put(self, role: str, metadata: Any) -> bytes:
        name = "timestamp.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
        data: bytes = metadata.to_bytes(JSONSerializer(validate=True))
        write_atomic(self.folder / "metadata" / name, data)
        return data

    def _file(self, role: str) -> str:
        """The file that holds the state of a role now."""
        if role == "timestamp":
            return "timestamp.json"
        if role == "root":
            return f"{max(int(p.name.split('.')[0]) for p in (self.folder / 'metadata').glob('*.root.json'))}.root.json"
        if role == "snapshot":
            return f"{self.read('timestamp').signed.snapshot_meta.version}.snapshot.json"
        return f"{self.read('snapshot').signed.meta[f'{role}.json'].version}.{role}.json"

    def _lacks(self, role: str) -> int:
        """How many of the keys that a role needs to be signed are not here."""
        delegator = self.read("targets" if role in self.modalities() else "root").signed
        wanted: Role = delegator.get_delegated_role(role)
        here = {keys.load(path).public_key.keyid for path in keys.files(self.keys, role)}
        return max(0, wanted.threshold - len(here & set(wanted.keyids)))

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.clock.now_ns() / NS, timezone.utc).replace(microsecond=0)

    def _hold(self, role: str, metadata: Any) -> Hold:
        days = (metadata.signed.expires - self._now()) / timedelta(days=1)
        of_days = metadata.signed.unrecognized_fields.get(expiry.FIELD, self.trust.days(role))
        return Hold(days, of_days, expiry.level(days, of_days))

    def _is_due(self, role: str, metadata: Any) -> bool:
        return self._hold(role, metadata).level != "fresh" and not self._lacks(role)
