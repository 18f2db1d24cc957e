"""A failed gate passed over: signed by somebody who answers for it, kept in the stage's folder, told by every card.

waivers.json holds them. A waiver is for one gate of one stage at the very value that was measured. Here its signature
must hold; `lineside deploy publish` then asks that the key be the plant's own.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from deploy.waivers import holds
from lineside.clock import Clock
from lineside.errors import ConfigError, GateError
from lineside.files import write_atomic
from lineside.release import Certificate, Gate, Waiver
from trainer import checkpoint, compatibility
from trainer.checkpoint import Stage

FILE = "waivers.json"
MEND = "train it again, or answer for it with `lineside export waive`"


def waive(folder: Path, gate: str, reason: str, by: str, key: Path, clock: Clock) -> Waiver:
    """Sign that a failed gate of the stage in `folder` may be passed over, and keep that beside the stage.

    Raises ConfigError for a gate that the stage does not have or that passed, for a reason that says nothing, and for a
    file that is no Ed25519 key.
    """
    stage = checkpoint.load_stage(folder)
    known = {one.name: one for one in gates(folder, stage)}
    if gate not in known or known[gate].passed:
        failed = ", ".join(f"`{name}`" for name, one in known.items() if not one.passed)
        why = "passed" if gate in known else f"is no gate of {stage.name}"
        raise ConfigError("--gate", f"`{gate}` {why}", f"failed are: {failed or 'none'}")
    if not reason.strip() or not by.strip():
        raise ConfigError("waive", "a waiver without a reason or a name is none", "give --reason and --by")
    signer, found = _signer(key), known[gate]
    public = signer.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
    told = Waiver(
        stage=stage.name,
        gate=gate,
        value=found.value,
        limit=found.limit,
        reason=reason.strip(),
        by=by.strip(),
        at_ns=clock.now_ns(),
        key=public,
    )
    signed = msgspec.structs.replace(told, signature=signer.sign(told.said).hex())
    rest = [one for one in kept(folder, stage) if one.gate != gate]
    write_atomic(folder / FILE, msgspec.json.format(msgspec.json.encode([*rest, signed]), indent=2) + b"\n")
    return signed


def kept(folder: Path, stage: Stage) -> list[Waiver]:
    """The waivers beside a stage. Raises ConfigError for a file that is none, GateError for one that does not hold."""
    path = folder / FILE
    if not path.exists():
        return []
    try:
        found = msgspec.json.decode(path.read_bytes(), type=list[Waiver])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(str(path), f"cannot be read ({error})", "delete it and waive again") from error
    for waiver in found:
        if waiver.stage != stage.name or not holds(waiver):
            told = f"the waiver of `{waiver.gate}` is of another stage, or was changed after it was signed"
            raise GateError(str(path), told, "delete it and waive again")
    return found


def gates(folder: Path, stage: Stage) -> list[Gate]:
    """Every gate of a stage: its own, and those of its certificates beside older stages."""
    return [*stage.certificate.gates, *(gate for one in compatibility.kept(folder, stage.name) for gate in one.gates)]


def certificate(folder: Path, stage: Stage) -> Certificate:
    """What the encoders of a stage may leave with: all gates, waivers, and the mixes that are certified.

    Raises GateError for the first failed gate that nobody waived.
    """
    beside = compatibility.kept(folder, stage.name)
    whole = msgspec.structs.replace(stage.certificate, gates=gates(folder, stage), waivers=kept(folder, stage))
    if (gate := whole.refused) is not None:
        checkpoint.must_hold([gate], f"{stage.name} in {folder}", MEND)
    own = checkpoint.identities(stage, checkpoint.load_tensors(folder, stage).encoders)
    return msgspec.structs.replace(whole, mixes=[own, *(mix.encoders for one in beside for mix in one.mixes)])


def _signer(key: Path) -> Ed25519PrivateKey:
    try:
        found = load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        told = f"is no private key that can be read ({type(error).__name__})"
        raise ConfigError(str(key), told, "give keys/targets.pem of the plant's repository") from error
    if not isinstance(found, Ed25519PrivateKey):
        raise ConfigError(str(key), "is no Ed25519 key", "give keys/targets.pem of the plant's repository")
    return found
