"""The folder of private keys: Ed25519, PKCS8, one file each, mode 0600 in a folder of mode 0700.

    {role}.pem              the key of a role
    root-{n}.pem            the keys of root, which has several
    {name}.next.pem         one that takes over; from the moment that it is there it signs beside the old one

Whatever key of a role lies here signs: who counts is said by the metadata that names the role. So a change of keys can
be killed anywhere, and every device can follow what is there.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from lineside.errors import ReleaseError
from lineside.files import write_atomic

NEXT = ".next.pem"


def files(folder: Path, role: str) -> list[Path]:
    """The key files of a role that are on this machine."""
    return sorted({path for end in (".pem", NEXT, "-*.pem") for path in folder.glob(f"{role}{end}")})


def settled(folder: Path, role: str) -> list[Path]:
    """Those of them that are not only about to take over."""
    return [path for path in files(folder, role) if not path.name.endswith(NEXT)]


def load(path: Path) -> CryptoSigner:
    """The key in a file. Raises ReleaseError (check `keys`)."""
    try:
        return CryptoSigner(load_pem_private_key(path.read_bytes(), None))
    except (OSError, ValueError) as error:
        mend = "bring the key from where it is kept (offline keys: root, targets)"
        raise ReleaseError("keys", str(path), f"cannot be used ({error})", mend) from error


def signers(folder: Path, role: str) -> list[CryptoSigner]:
    """Every key of a role that is here. Raises ReleaseError (check `keys`) when there is none."""
    return [load(path) for path in files(folder, role) or [folder / f"{role}.pem"]]


def make(path: Path) -> CryptoSigner:
    """A new key in a file that is not there yet; one that is there is taken as it is."""
    if path.exists():
        return load(path)
    made = CryptoSigner.generate_ed25519()
    write_atomic(path, made.private_bytes, mode=0o600)
    return made


def settle(folder: Path, role: str, listed: Collection[str]) -> None:
    """Let keys that were `listed` (by key id) take the names of those before them, and remove what is not listed."""
    for path in settled(folder, role):
        if load(path).public_key.keyid not in listed:
            path.unlink()
    for path in files(folder, role):
        if path.name.endswith(NEXT) and load(path).public_key.keyid in listed:
            path.rename(path.with_name(path.name.removesuffix(NEXT) + ".pem"))
