"""What stands in the signed repository: deploy writes it, devices look for it by these names.

    models/{modality}/current.json                      Pointer: the version that the modality is to run
    models/{modality}/{modality}-{version}.onnx         an encoder in fp32; its `custom` is a Model
    models/{modality}/{modality}-{version}.int8.onnx    the same version in another precision

The pointer is a signed target like the rest, so that taking a modality back is newer metadata which names an older
version: protection against rolled-back metadata stays whole.
"""

from __future__ import annotations

import msgspec

from lineside.errors import ReleaseError

PRECISIONS = ("fp32", "int8")
MAX_POINTER_BYTES = 65_536
MAX_MODEL_BYTES = 1 << 28


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What signed metadata says of an encoder file besides length and hash."""

    version: int
    space: str
    precision: str
    sha256: str


class Pointer(msgspec.Struct, frozen=True, kw_only=True):
    """The version that a modality is to run, its target for each precision, and what ran before, oldest first."""

    version: int
    targets: dict[str, str]
    history: list[int] = []


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


def read_pointer(data: bytes, modality: str) -> Pointer:
    """A modality's pointer from its bytes.

    Raises ReleaseError (check `pointer`) when it is none, or names a target that does not belong to the modality.
    """
    name = pointer_name(modality)
    try:
        pointer = msgspec.json.decode(data, type=Pointer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ReleaseError("pointer", name, f"is no pointer ({error})", "publish the modality again") from error
    for precision, target in pointer.targets.items():
        if target != model_name(modality, pointer.version, precision):
            told = f"names {target!r} for {precision} of version {pointer.version}"
            raise ReleaseError("pointer", name, told, "publish the modality again")
    return pointer


def read_model(custom: object, name: str) -> Model:
    """What the signed metadata of target `name` says of it. Raises ReleaseError (check `metadata`)."""
    try:
        return msgspec.convert(custom, Model)
    except msgspec.ValidationError as error:
        raise ReleaseError("metadata", name, f"is not described ({error})", "publish it again") from error
