"""What stands in the signed repository: deploy writes it, devices look for it by these names.

    models/{modality}/current.json                      Pointer: the version that the modality is to run
    models/{modality}/{modality}-{version}.onnx         an encoder in fp32; its `custom` is a Model
    models/{modality}/{modality}-{version}.int8.onnx    the same version in another precision
    models/{modality}/{modality}-{version}.int8.from-{16 digits}.delta
                                                        the same file from the one of this SHA-256 (lineside.delta)

The pointer is a signed target like the rest, so that taking a modality back is newer metadata which names an older
version: protection against rolled-back metadata stays whole.
"""

from __future__ import annotations

import hashlib

import msgspec

from lineside.errors import ReleaseError

PRECISIONS = ("fp32", "fp16", "int8")
MAX_POINTER_BYTES = 65_536
MAX_MODEL_BYTES = 1 << 28


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What signed metadata says of an encoder file besides length and hash."""

    version: int
    space: str
    precision: str
    sha256: str


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """How a candidate has to prove itself on each device before it is reported as taken.

    For `shadow_s` it judges the same moments beside the encoder in use, for `probation_s` it is in use and watched;
    a phase that takes longer than `patience_s` has failed. Limits: `anomalies` is by how much more of the moments may
    be anomalous (share), `agreement` by how much the mean agreement of a pair with the modality may fall (cosine),
    `contribution` by how much the modality's share of the evidence may move (share).
    """

    shadow_s: float = 60.0
    probation_s: float = 60.0
    patience_s: float = 3600.0
    anomalies: float = 0.02
    agreement: float = 0.1
    contribution: float = 0.25


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A version on its way, for the devices of the rings that are open: `devices` by name, `percent` of all by lot.

    `rollout` is the rollout's identity, and the salt of the lot; modalities with the same one are changed together.
    While `paused`, a device that has not begun does not begin.
    """

    rollout: str
    version: int
    targets: dict[str, str]
    devices: list[str] = []
    percent: float = 0.0
    paused: bool = False
    terms: Terms = Terms()

    def takes(self, device: str) -> bool:
        """Whether a device is in a ring that is open."""
        return device in self.devices or lot(self.rollout, device) < self.percent


class Pointer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The version that a modality is to run, its target for each precision, and what ran before, oldest first.

    With a `candidate` the devices that it takes are to run that one instead.
    """

    version: int
    targets: dict[str, str]
    history: list[int] = []
    candidate: Candidate | None = None


def lot(rollout: str, device: str) -> float:
    """A device's place among all in a rollout, 0 to 100: the same wherever it is asked, another in each rollout.

    >>> 0 <= lot("7f", "edge-1") < 100, lot("7f", "edge-1") == lot("80", "edge-1")
    (True, False)
    """
    drawn = hashlib.sha256(f"{rollout}/{device}".encode()).digest()
    return int.from_bytes(drawn[:8], "big") / 2**64 * 100


def paths(modality: str) -> str:
    """The pattern of targets that a modality's role may sign.

    >>> paths("camera")
    'models/camera/*'
    """
    return f"models/{modality}/*"


def pointer_name(modality: str) -> str:
    """Target name of a modality's pointer."""
    return f"models/{modality}/current.json"


def model_name(modality: str, version: int, precision: str = "fp32") -> str:
    """Target name of an encoder file.

    >>> model_name("camera", 3), model_name("camera", 3, "int8")
    ('models/camera/camera-3.onnx', 'models/camera/camera-3.int8.onnx')
    """
    middle = "" if precision == "fp32" else f".{precision}"
    return f"models/{modality}/{modality}-{version}{middle}.onnx"


def delta_name(model: str, base_sha256: str) -> str:
    """Target name of the delta to an encoder file from the one with this hash.

    >>> delta_name("models/camera/camera-3.int8.onnx", "0123456789abcdef" * 4)
    'models/camera/camera-3.int8.from-0123456789abcdef.delta'
    """
    return f"{model.removesuffix('.onnx')}.from-{base_sha256[:16]}.delta"


def read_pointer(data: bytes, modality: str) -> Pointer:
    """A modality's pointer from its bytes.

    Raises ReleaseError (check `pointer`) when it is none, or names a target that does not belong to the modality.
    """
    name = pointer_name(modality)
    try:
        pointer = msgspec.json.decode(data, type=Pointer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ReleaseError("pointer", name, f"is no pointer ({error})", "publish the modality again") from error
    for named in (pointer, pointer.candidate) if pointer.candidate else (pointer,):
        for precision, target in named.targets.items():
            if target != model_name(modality, named.version, precision):
                told = f"names {target!r} for {precision} of version {named.version}"
                raise ReleaseError("pointer", name, told, "publish the modality again")
    return pointer


def read_model(custom: object, name: str) -> Model:
    """What the signed metadata of target `name` says of it. Raises ReleaseError (check `metadata`)."""
    try:
        return msgspec.convert(custom, Model)
    except msgspec.ValidationError as error:
        raise ReleaseError("metadata", name, f"is not described ({error})", "publish it again") from error
