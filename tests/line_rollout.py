"""What an operator signs during a rollout, made by hand: any bytes, a candidate for some devices, its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from tuf.api.metadata import TargetFile

from deploy.repository import Repository
from lineside import targets
from lineside.files import sha256, write_atomic
from lineside.targets import Candidate, Model, Pointer, Terms

AT_ONCE = Terms(shadow_s=0.0, probation_s=0.0, patience_s=60.0)


def sign(repo: Repository, files: Mapping[str, tuple[bytes, Model | None]]) -> None:
    """Put targets into the repository whatever they are, each signed by the role of its modality."""
    with repo.roles.alone():
        changed = {name.split("/")[1]: repo.roles.read(name.split("/")[1]) for name in files}
        for name, (data, model) in files.items():
            file = TargetFile.from_data(name, data, ["sha256"])
            if model is not None:
                file.unrecognized_fields["custom"] = msgspec.to_builtins(model)
            folder, _, base = name.rpartition("/")
            write_atomic(repo.roles.folder / "targets" / folder / f"{file.hashes['sha256']}.{base}", data)
            changed[name.split("/")[1]].signed.targets[name] = file
        repo.roles.commit(changed)


def offer(
    repo: Repository,
    versions: Mapping[str, Path],
    rollout: str,
    terms: Terms = AT_ONCE,
    devices: tuple[str, ...] = ("edge-1",),
    paused: bool = False,
) -> None:
    """A rollout of these encoder files `{modality}-{version}.onnx`, by modality, is open for `devices`."""
    files: dict[str, tuple[bytes, Model | None]] = {}
    for modality, path in versions.items():
        version, data = int(path.stem.rpartition("-")[2]), path.read_bytes()
        name = targets.model_name(modality, version)
        model = Model(version=version, space="line", precision="fp32", sha256=sha256(data))
        candidate = Candidate(
            rollout=rollout,
            version=version,
            targets={"fp32": name},
            devices=[*devices],
            paused=paused,
            terms=terms,
        )
        files |= {name: (data, model), targets.pointer_name(modality): (pointed(repo, modality, candidate), None)}
    sign(repo, files)


def abort(repo: Repository, *modalities: str) -> None:
    """The candidates of these modalities are no more."""
    sign(repo, {targets.pointer_name(modality): (pointed(repo, modality, None), None) for modality in modalities})


def finish(repo: Repository, *modalities: str) -> None:
    """What was the candidate is what all devices run."""
    files: dict[str, tuple[bytes, Model | None]] = {}
    for modality in modalities:
        candidate = pointer(repo, modality).candidate
        assert candidate is not None
        ended = Pointer(version=candidate.version, targets=candidate.targets, history=[pointer(repo, modality).version])
        files[targets.pointer_name(modality)] = msgspec.json.encode(ended), None
    sign(repo, files)


def pointer(repo: Repository, modality: str) -> Pointer:
    """The modality's pointer, which there is."""
    found = repo.pointer(modality)
    assert found is not None
    return found


def pointed(repo: Repository, modality: str, candidate: Candidate | None) -> bytes:
    """The bytes of the pointer with this candidate."""
    return msgspec.json.encode(msgspec.structs.replace(pointer(repo, modality), candidate=candidate))
