"""New keys for a role: devices follow from whatever they saw last, also over several changes that they slept through.

What a role signs is first signed by the old and the new key, then the metadata that names the role names the new one
alone (TUF specification 6.1). Whoever looks between two writes finds what he can verify.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from deploy import keys
from deploy.roles import ONLINE, Roles
from lineside.errors import ReleaseError


@dataclass(frozen=True)
class Rotated:
    """What was changed: the roles, the root that names their keys now, key ids that count no more, new key files."""

    roles: tuple[str, ...]
    root_version: int
    revoked: tuple[str, ...]
    files: tuple[str, ...]


def rotate(roles: Roles, role: str) -> Rotated:
    """Replace the keys of a role; the old ones count no more for a device that has seen the change.

    snapshot and timestamp are replaced together: their keys lie on one machine, and only when neither of the old ones
    counts does a device forget the version numbers that a thief has told it (fast-forward, specification 5.3.11). root
    gets as many keys as the plant file says, whatever it had. A key that is lost is replaced like any other; with too
    few of root's left, each device needs a new root.json by hand.

    Raises ReleaseError: `role` for an unknown one, `keys` when too few of the keys that must sign are here; nothing is
    changed then.
    """
    if role == "root":
        return _root(roles)
    if role in (*ONLINE, "targets"):
        return _named_by_root(roles, ONLINE if role in ONLINE else (role,))
    if role in roles.modalities():
        return _modality(roles, role)
    known = ", ".join(("root", "targets", *ONLINE, *roles.modalities()))
    raise ReleaseError("role", role, "has no signing role", f"known are {known}")


def _root(roles: Roles) -> Rotated:
    roles.require("root")
    root, trust = roles.read("root"), roles.trust
    paths = [roles.keys / f"root-{n}{keys.NEXT}" for n in range(1, trust.root_keys + 1)]
    old = _replace(root.signed, "root", [keys.make(path) for path in paths])
    root.signed.roles["root"].threshold = trust.root_threshold
    roles.renew_root(root)
    return _told(roles, ("root",), root, old)


def _named_by_root(roles: Roles, changed: tuple[str, ...]) -> Rotated:
    roles.require("root", *(role for role in ONLINE if role not in changed))
    root = roles.read("root")
    signed = {"targets": roles.read("targets")} if "targets" in changed else {}
    old = []
    for role in changed:
        old += _replace(root.signed, role, [keys.make(roles.keys / f"{role}{keys.NEXT}")])
    roles.commit(signed)  # by old and new keys
    roles.renew_root(root)
    return _told(roles, changed, root, old)


def _modality(roles: Roles, modality: str) -> Rotated:
    roles.require("targets", *ONLINE)
    parent, own = roles.read("targets"), roles.read(modality)
    old = _replace(parent.signed, modality, [keys.make(roles.keys / f"{modality}{keys.NEXT}")])
    roles.commit({modality: own, "targets": parent})
    return _told(roles, (modality,), roles.read("root"), old)


def _replace(delegator: Any, role: str, new: list[CryptoSigner]) -> list[str]:
    """Let a delegator name these keys alone for a role; gives the ids of those that it named before."""
    known = list(delegator.get_delegated_role(role).keyids)
    for signer in new:
        delegator.add_key(signer.public_key, role)
    old = [keyid for keyid in known if keyid not in {signer.public_key.keyid for signer in new}]
    for keyid in old:
        delegator.revoke_key(keyid, role)
    return old


def _told(roles: Roles, changed: tuple[str, ...], root: Metadata[Root], old: list[str]) -> Rotated:
    files: list[Path] = []
    for role in changed:
        roles.settle(role)
        files += keys.files(roles.keys, role)
    return Rotated(changed, root.signed.version, tuple(old), tuple(str(path) for path in files))
