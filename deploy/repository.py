"""Encoders in the signed repository: publish them, offer one to rings of devices, point a modality at one or back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.metadata import TargetFile

from deploy import deltas, rotation
from deploy.roles import Hold, Roles
from deploy.rotation import Rotated
from deploy.waivers import holds
from lineside import onnx_metadata, release, targets
from lineside.clock import Clock
from lineside.errors import ReleaseError
from lineside.files import sha256, write_atomic
from lineside.plant import PlantConfig
from lineside.targets import Candidate, Model, Pointer


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
    """What a modality is to run: the version, and the SHA-256 of its file for each precision.

    With a `candidate` the devices that it takes are to run that one.
    """

    modality: str
    version: int
    sha256: dict[str, str] = field(default_factory=dict)
    candidate: Candidate | None = None
    candidate_sha256: dict[str, str] = field(default_factory=dict)

    def wanted(self, device: str) -> tuple[int, dict[str, str]]:
        """Version and SHA-256 by precision that a device is to run."""
        if self.candidate is not None and self.candidate.takes(device):
            return self.candidate.version, self.candidate_sha256
        return self.version, self.sha256


@dataclass(frozen=True)
class Published:
    """A version that stands signed in the repository; `pointed` is whether all devices are to run it."""

    modality: str
    version: int
    sha256: dict[str, str]
    pointed: bool


def of(plant: PlantConfig, base: Path, clock: Clock) -> Repository:
    """The repository of a plant whose file stands in `base`."""
    return Repository(Roles(base / plant.repository, base / plant.keys, clock, plant.trust))


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
            self.roles.begin()
            (self.roles.folder / "targets").mkdir(exist_ok=True)  # a hub that serves it may not write there
            added = tuple(modality for modality in modalities if modality not in self.roles.modalities())
            for modality in added:
                self.roles.add(modality)
        return added

    def publish(self, files: Sequence[Path]) -> list[Published]:
        """Add encoder files, all in one step; a modality's first version is pointed at, later ones wait for `offer`.

        Raises ReleaseError, and changes nothing, for a file without card (`card`), a modality without role (`role`),
        a key that is not here (`keys`), a version that was published with other bytes (`version`), a gate waived by
        somebody else than the plant (`waiver`), and whatever `lineside.release.accept` refuses of each alone, or of
        the first ones beside what runs.
        """
        encoders = [read_encoder(_bytes(path), path.name) for path in files]
        with self.roles.alone():
            for encoder in encoders:
                self._check_name(encoder, {other.target: sha256(other.data) for other in encoders})
            new = [one.card for one in encoders if self.pointer(one.card.modality) is None]
            first = {card.modality: card.version for card in sorted(new, key=lambda card: card.version)}
            self._accept([card for card in new if first[card.modality] == card.version])
            for encoder in encoders:
                self._accept_alone(encoder.card)
            changed: dict[str, Any] = {}
            for encoder in encoders:
                metadata = changed.setdefault(encoder.card.modality, self.roles.read(encoder.card.modality))
                self._add(metadata, encoder.target, encoder.data, _model(encoder))
                for name, patch in deltas.towards(encoder.target, encoder.data, self._in_field(encoder)).items():
                    self._add(metadata, name, patch, None)
            for modality, metadata in changed.items():
                if modality in first:
                    self._point(metadata, modality, first[modality])
                else:
                    self._rename(metadata, modality)
            self._commit(changed)
        names = dict.fromkeys((one.card.modality, one.card.version) for one in encoders)
        return [self.published(*name) for name in names]

    def published(self, modality: str, version: int | None = None) -> Published:
        """A version of a modality, by default its newest. Raises ReleaseError (`role`, `missing`)."""
        self._check_role(modality)
        metadata = self.roles.read(modality)
        pointer = self.pointer(modality)
        known = {_version(name, file) for name, file in metadata.signed.targets.items()} - {None}
        if not known or (version is not None and version not in known):
            raise _missing(modality, version)
        named = version if version is not None else max(each for each in known if each is not None)
        pointed = pointer is not None and pointer.version == named
        return Published(modality, named, self._hashes(metadata, _files(metadata, named)), pointed)

    def refusal(self, versions: Mapping[str, int]) -> str:
        """Why `offer` would refuse these versions for what they are; empty when it would not."""
        try:
            self._accept([self._card(self.roles.read(each), each, version) for each, version in versions.items()])
        except ReleaseError as error:
            return str(error)
        return ""

    def offer(self, versions: Mapping[str, int], candidate: Candidate) -> None:
        """Make versions, by modality, the candidates of one rollout, or change which devices it takes and how.

        `candidate` says all but version and targets. Raises ReleaseError for a version that is not there (`missing`),
        a key that is not here (`keys`), or versions that are refused together or beside anything that the other
        modalities may run meanwhile (`lineside.release.accept`); nothing is changed then.
        """
        with self.roles.alone():
            changed = {modality: self._signable(modality) for modality in versions}
            self._accept([self._card(changed[modality], modality, version) for modality, version in versions.items()])
            for modality, version in versions.items():
                pointer = self.pointer(modality)
                if pointer is None:
                    raise ReleaseError("missing", modality, "has no version that could be gone back to", "publish one")
                named = {"version": version, "targets": _files(changed[modality], version)}
                offered = msgspec.structs.replace(candidate, **named)
                self._set(changed[modality], modality, msgspec.structs.replace(pointer, candidate=offered))
            self._commit(changed)

    def settle(self, rollout: str, taken: bool) -> None:
        """End a rollout: its candidates become the versions that all devices run, or are taken away.

        Modalities that are in no or another rollout stay as they are.
        """
        with self.roles.alone():
            changed = {}
            for modality, pointed in self.pointed().items():
                if pointed.candidate is not None and pointed.candidate.rollout == rollout:
                    changed[modality] = self._signable(modality)
                    version = pointed.candidate.version if taken else pointed.version
                    self._point(changed[modality], modality, version)
            self._commit(changed)

    def point(self, modality: str, version: int) -> Pointed:
        """Point a modality at a version that was published before, and end what was offered.

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

    def refresh(self) -> dict[str, Hold]:
        """Sign anew what expires; how long each role holds now (see Roles.refresh)."""
        with self.roles.alone():
            return self.roles.refresh()

    def rotate(self, role: str) -> Rotated:
        """Give a role new keys (see deploy.rotation)."""
        with self.roles.alone():
            return rotation.rotate(self.roles, role)

    def pointer(self, modality: str) -> Pointer | None:
        """A modality's pointer, None before its first publication. Raises ReleaseError (`role`) without a role."""
        self._check_role(modality)
        return self._read_pointer(self.roles.read(modality), modality)

    def pointed(self) -> dict[str, Pointed]:
        """What each modality is to run."""
        found = {}
        for modality in self.roles.modalities():
            if pointer := self.pointer(modality):
                metadata, candidate = self.roles.read(modality), pointer.candidate
                hashes = self._hashes(metadata, pointer.targets)
                offered = self._hashes(metadata, candidate.targets) if candidate else {}
                found[modality] = Pointed(modality, pointer.version, hashes, candidate, offered)
        return found

    def _point_back(self, modality: str, version: int) -> Pointed:
        metadata = self._signable(modality)
        self._accept([self._card(metadata, modality, version)])
        self._point(metadata, modality, version)
        self._commit({modality: metadata})
        return self.pointed()[modality]

    def _signable(self, modality: str) -> Any:
        """The metadata of a modality that has a role and whose change can be signed to the end."""
        self._check_role(modality)
        self.roles.check_keys(modality)
        return self.roles.read(modality)

    def _card(self, metadata: Any, modality: str, version: int) -> release.Card:
        name = next(iter(_files(metadata, version).values()), None)
        if name is None:
            raise _missing(modality, version)
        return read_encoder(self._target(name, metadata.signed.targets[name]), name).card

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

    def _accept(self, cards: Sequence[release.Card]) -> None:
        """Check encoders beside each other, and beside whatever the other modalities may run: version and candidate."""
        own = {card.modality: card for card in cards}
        others = [self._possible(modality, each) for modality, each in self.pointed().items() if modality not in own]
        for running in itertools.product(*others):
            for card in cards:
                release.accept(card, {**{other.modality: other for other in running}, **own})

    def _possible(self, modality: str, pointed: Pointed) -> list[release.Card]:
        versions = [pointed.version, *([pointed.candidate.version] if pointed.candidate else [])]
        return [self._card(self.roles.read(modality), modality, version) for version in versions]

    def _accept_alone(self, card: release.Card) -> None:
        release.accept(card, {})
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
        before = self._read_pointer(metadata, modality)
        history = before.history if before else []
        if before and before.version != version:
            at = history.index(version) if version in history else None
            history = [*history, before.version] if at is None else history[:at]
        pointer = Pointer(version=version, targets=_files(metadata, version), history=history)
        self._set(metadata, modality, pointer)

    def _rename(self, metadata: Any, modality: str) -> None:
        """Name what the pointer names anew: a version may have been published in one more precision."""
        pointer = self._read_pointer(metadata, modality)
        assert pointer is not None
        if (candidate := pointer.candidate) is not None:
            candidate = msgspec.structs.replace(candidate, targets=_files(metadata, candidate.version))
        files = _files(metadata, pointer.version)
        self._set(metadata, modality, msgspec.structs.replace(pointer, targets=files, candidate=candidate))

    def _read_pointer(self, metadata: Any, modality: str) -> Pointer | None:
        name = targets.pointer_name(modality)
        file = metadata.signed.targets.get(name)
        return targets.read_pointer(self._target(name, file), modality) if file else None

    def _set(self, metadata: Any, modality: str, pointer: Pointer) -> None:
        self._add(metadata, targets.pointer_name(modality), msgspec.json.encode(pointer), None)

    def _hashes(self, metadata: Any, files: Mapping[str, str]) -> dict[str, str]:
        return {precision: metadata.signed.targets[name].hashes["sha256"] for precision, name in files.items()}

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

    def _in_field(self, encoder: Encoder) -> Iterator[bytes]:
        """The files that devices may have now, of the same modality and precision."""
        card = encoder.card
        files = self.roles.read(card.modality).signed.targets
        for version in deltas.in_field(self.pointer(card.modality)):
            name = targets.model_name(card.modality, version, card.precision)
            if version != card.version and name in files:
                yield self._target(name, files[name])

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


def _files(metadata: Any, version: int) -> dict[str, str]:
    """The targets of a version, by precision."""
    files = metadata.signed.targets
    names = sorted(name for name, file in files.items() if _version(name, file) == version)
    return dict(sorted((targets.read_model(files[name].custom, name).precision, name) for name in names))


def _missing(modality: str, version: int | None) -> ReleaseError:
    if version is None:
        return ReleaseError("missing", modality, "has nothing published", "run `lineside deploy publish` first")
    return ReleaseError("missing", f"{modality}-{version}", "was not published", "publish it")


def _model(encoder: Encoder) -> Model:
    card = encoder.card
    return Model(version=card.version, space=card.space, precision=card.precision, sha256=sha256(encoder.data))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReleaseError("card", str(path), f"cannot be read ({error.strerror})", "give an ONNX file") from error
