"""Encoders in the signed repository: publish them, point a modality at one, take a modality back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.metadata import TargetFile

from deploy.roles import Roles
from deploy.waivers import holds
from lineside import onnx_metadata, release, targets
from lineside.clock import Clock
from lineside.errors import ReleaseError
from lineside.files import sha256, write_atomic
from lineside.plant import PlantConfig
from lineside.targets import Model, Pointer


@dataclass(frozen=True)
class Encoder:
    """An encoder file with the card that it carries."""

    card: release.Card
    data: bytes

    @property
    def target(self) -> str:
        """Its name in the repository."""
        return targets.model_name(self.card.modality, self.card.version, self.card.precision)


@dataclass(frozen=True)
class Pointed:
    """What a modality is to run: the version, and the SHA-256 of its file for each precision."""

    modality: str
    version: int
    sha256: dict[str, str] = field(default_factory=dict)


def of(plant: PlantConfig, base: Path, clock: Clock) -> Repository:
    """The repository of a plant whose file stands in `base`."""
    return Repository(Roles(base / plant.repository, base / plant.keys, clock))


def read_encoder(data: bytes, name: str) -> Encoder:
    """An encoder from its bytes. Raises ReleaseError (check `card`)."""
    card = release.from_metadata(onnx_metadata.read(data, name), name)
    if card.precision not in targets.PRECISIONS or card.version < 1:
        told = f"version {card.version} in {card.precision!r}; known are versions from 1 in {targets.PRECISIONS}"
        raise ReleaseError("card", name, told, "export it with `lineside export build`")
    return Encoder(card, data)


@dataclass(frozen=True)
class Repository:
    """A TUF repository: consistent snapshots, one terminating role per modality."""

    roles: Roles

    def init(self, modalities: Sequence[str]) -> tuple[str, ...]:
        """Begin the repository, or add the modalities that it lacks; gives the added ones. Keeps every existing key."""
        with self.roles.alone():
            if not self.roles.exist():
                self.roles.create()
            added = tuple(modality for modality in modalities if modality not in self.roles.modalities())
            for modality in added:
                self.roles.add(modality)
        return added

    def publish(self, files: Sequence[Path]) -> list[Pointed]:
        """Add encoder files and point their modalities at them, all in one step.

        Raises ReleaseError, and changes nothing, for a file without card (`card`), a modality without role (`role`),
        a key that is not here (`keys`), a version that was published with other bytes (`version`), a gate waived by
        somebody else than the plant (`waiver`), and whatever
        `lineside.release.accept` refuses beside the encoders that the modalities are pointed at after this step.
        """
        encoders = [read_encoder(_bytes(path), path.name) for path in files]
        with self.roles.alone():
            for encoder in encoders:
                self._check_name(encoder, {other.target: sha256(other.data) for other in encoders})
            self._accept([encoder.card for encoder in encoders])
            changed: dict[str, Any] = {}
            for encoder in encoders:
                metadata = changed.setdefault(encoder.card.modality, self.roles.read(encoder.card.modality))
                self._add(metadata, encoder.target, encoder.data, _model(encoder))
            for encoder in encoders:
                self._point(changed[encoder.card.modality], encoder.card.modality, encoder.card.version)
            self._commit(changed)
        return [pointed for pointed in self.pointed().values() if pointed.modality in changed]

    def point(self, modality: str, version: int) -> Pointed:
        """Point a modality at a version that was published before.

        Raises ReleaseError for a version that is not there (`missing`), or that is refused beside its peers.
        """
        with self.roles.alone():
            return self._point_back(modality, version)

    def step_back(self, modality: str) -> Pointed:
        """Point a modality at the version before: newer metadata that names the older version again.

        Raises ReleaseError (`missing`) when there is none before.
        """
        with self.roles.alone():
            pointer = self.pointer(modality)
            if pointer is None or not pointer.history:
                now = f"runs {modality}-{pointer.version}, its first" if pointer else "was never published"
                raise ReleaseError("missing", modality, now, "publish the version that you want")
            return self._point_back(modality, pointer.history[-1])

    def refresh(self) -> dict[str, float]:
        """Sign anew what expires; the days that each role holds now (see Roles.refresh)."""
        with self.roles.alone():
            return self.roles.refresh()

    def pointer(self, modality: str) -> Pointer | None:
        """A modality's pointer, None before its first publication. Raises ReleaseError (`role`) without a role."""
        self._check_role(modality)
        name = targets.pointer_name(modality)
        file = self.roles.read(modality).signed.targets.get(name)
        return targets.read_pointer(self._target(name, file), modality) if file else None

    def pointed(self) -> dict[str, Pointed]:
        """What each modality is to run."""
        found = {}
        for modality in self.roles.modalities():
            if pointer := self.pointer(modality):
                files = self.roles.read(modality).signed.targets
                hashes = {precision: files[name].hashes["sha256"] for precision, name in pointer.targets.items()}
                found[modality] = Pointed(modality, pointer.version, hashes)
        return found

    def _point_back(self, modality: str, version: int) -> Pointed:
        self._check_role(modality)
        self.roles.check_keys(modality)
        metadata = self.roles.read(modality)
        names = [name for name, file in metadata.signed.targets.items() if _version(name, file) == version]
        if not names:
            raise ReleaseError("missing", f"{modality}-{version}", "was not published", "publish it")
        data = self._target(names[0], metadata.signed.targets[names[0]])
        self._accept([read_encoder(data, names[0]).card])
        self._point(metadata, modality, version)
        self._commit({modality: metadata})
        return self.pointed()[modality]

    def _check_role(self, modality: str) -> None:
        if modality not in (known := self.roles.modalities()):
            mend = "add it to `modalities` of the plant file and run `lineside deploy init`"
            raise ReleaseError("role", modality, f"has no signing role (roles: {', '.join(known) or 'none'})", mend)

    def _check_name(self, encoder: Encoder, batch: Mapping[str, str]) -> None:
        """A name stands for the same bytes for ever, within one publication too."""
        self._check_role(encoder.card.modality)
        self.roles.check_keys(encoder.card.modality)
        there = self.roles.read(encoder.card.modality).signed.targets.get(encoder.target)
        if {batch[encoder.target], there.hashes["sha256"] if there else batch[encoder.target]} != {
            sha256(encoder.data)
        }:
            told = f"version {encoder.card.version} was published with other bytes"
            raise ReleaseError("version", encoder.target, told, "export it under a new version")

    def _accept(self, candidates: Sequence[release.Card]) -> None:
        """Check candidates beside each other and beside the modalities that keep their encoder."""
        running = {card.modality: card for card in candidates}
        for modality, pointed in self.pointed().items():
            if modality not in running:
                precision = next(iter(pointed.sha256))
                name = targets.model_name(modality, pointed.version, precision)
                file = self.roles.read(modality).signed.targets[name]
                running[modality] = read_encoder(self._target(name, file), name).card
        for card in candidates:
            release.accept(card, running)
            self._check_waivers(card)

    def _check_waivers(self, card: release.Card) -> None:
        """Only the plant's own targets key may answer for a failed gate."""
        root = self.roles.read("root").signed
        ours = {root.keys[keyid].keyval["public"] for keyid in root.roles["targets"].keyids}
        for waiver in card.certificate.waivers:
            if waiver.key not in ours or not holds(waiver):
                told = f"the waiver of `{waiver.gate}` by {waiver.by} is not signed by the plant's targets key"
                raise ReleaseError("waiver", card.name, told, "waive it with --key keys/targets.pem, and export again")

    def _point(self, metadata: Any, modality: str, version: int) -> None:
        """Name a version in the pointer. Its history tells what ran before: a step back takes the last entry away."""
        old = metadata.signed.targets.get(targets.pointer_name(modality))
        before = targets.read_pointer(self._target(targets.pointer_name(modality), old), modality) if old else None
        history = before.history if before else []
        if before and before.version != version:
            at = history.index(version) if version in history else None
            history = [*history, before.version] if at is None else history[:at]
        files = {
            read.precision: name
            for name, file in metadata.signed.targets.items()
            if _version(name, file) == version and (read := targets.read_model(file.custom, name))
        }
        pointer = Pointer(version=version, targets=dict(sorted(files.items())), history=history)
        self._add(metadata, targets.pointer_name(modality), msgspec.json.encode(pointer), None)

    def _add(self, metadata: Any, name: str, data: bytes, model: Model | None) -> None:
        file = TargetFile.from_data(name, data, ["sha256"])
        if model is not None:
            file.unrecognized_fields["custom"] = msgspec.to_builtins(model)
        if metadata.signed.targets.get(name) != file:
            write_atomic(self._path(name, file), data)
            metadata.signed.targets[name] = file

    def _commit(self, changed: Mapping[str, Any]) -> None:
        """Sign what really changed; publishing the same again is no new version."""
        new = {role: data for role, data in changed.items() if data.signed != self.roles.read(role).signed}
        if new:
            self.roles.commit(new)

    def _target(self, name: str, file: TargetFile) -> bytes:
        data = _bytes(self._path(name, file))
        if sha256(data) != file.hashes["sha256"]:
            raise ReleaseError("hash", name, "the repository's own copy was changed", "restore it from a backup")
        return data

    def _path(self, name: str, file: TargetFile) -> Path:
        folder, _, base = name.rpartition("/")
        return self.roles.folder / "targets" / folder / f"{file.hashes['sha256']}.{base}"


def _version(name: str, file: TargetFile) -> int | None:
    """The version of a model target, None for a pointer."""
    return targets.read_model(file.custom, name).version if file.custom else None


def _model(encoder: Encoder) -> Model:
    card = encoder.card
    return Model(version=card.version, space=card.space, precision=card.precision, sha256=sha256(encoder.data))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReleaseError("card", str(path), f"cannot be read ({error.strerror})", "give an ONNX file") from error
