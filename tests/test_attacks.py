"""Every class of attack that The Update Framework names (specification 1.5.2), and two of Uptane's, by its name.

Each is carried out against a device with `edge.updater` over real HTTP, on a repository that `deploy` made, by somebody
who rules the web server and holds some stolen keys. It is refused by the check that the table says, the encoders in use
stay, and where honest people can still do something about it, the device follows them afterwards.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile, TargetFile

from deploy import keys
from edge.config import RepositorySettings
from edge.fetcher import Fetcher, Patience
from edge.updater import Updater
from edge.web import Web
from lineside import onnx_metadata, release, targets
from lineside.clock import NS, SystemClock
from lineside.errors import ReleaseError
from lineside.targets import Candidate
from tests import tiny_encoder
from tests.range_server import RangeServer
from tests.test_updater import PLANT, Bench, broken, endless

DAY_NS = 86_400 * NS
FAR = 1 << 31  # a version number that nobody reaches


class Thief:
    """Writes what he likes into the web server's folder; signs with stolen keys, and with his own where he has none."""

    def __init__(self, bench: Bench, *stolen: str) -> None:
        self.roles = bench.repo.roles
        self.folder = self.roles.folder / "metadata"
        self._stolen = {role: keys.signers(self.roles.keys, role) for role in stolen}

    def read(self, role: str) -> Any:
        """What the repository really says."""
        return self.roles.read(role)

    def write(self, role: str, metadata: Any, *signers: CryptoSigner) -> None:
        """Sign and put it where devices look."""
        metadata.signatures.clear()
        for signer in signers or self._stolen.get(role) or [CryptoSigner.generate_ed25519()]:
            metadata.sign(signer, append=True)
        name = "timestamp.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
        (self.folder / name).write_bytes(metadata.to_bytes())

    def publish(self, **changed: Any) -> None:
        """New versions of some roles, listed by snapshot and timestamp."""
        snapshot, timestamp = self.read("snapshot"), self.read("timestamp")
        for role, metadata in changed.items():
            metadata.signed.version += 1
            self.write(role, metadata)
            snapshot.signed.meta[f"{role}.json"] = MetaFile(version=metadata.signed.version)
        snapshot.signed.version += 1
        timestamp.signed.version += 1
        timestamp.signed.snapshot_meta = MetaFile(version=snapshot.signed.version)
        self.write("snapshot", snapshot)
        self.write("timestamp", timestamp)

    def put(self, metadata: Any, name: str, data: bytes, **custom: object) -> None:
        """A target with its file."""
        file = TargetFile.from_data(name, data, ["sha256"])
        if custom:
            file.unrecognized_fields["custom"] = custom
        metadata.signed.targets[name] = file
        folder, _, base = name.rpartition("/")
        (self.roles.folder / "targets" / folder / f"{file.hashes['sha256']}.{base}").write_bytes(data)

    def point(self, metadata: Any, version: int, target: str) -> None:
        """Let the camera's pointer name a target."""
        pointer = targets.Pointer(version=version, targets={"fp32": target})
        self.put(metadata, targets.pointer_name("camera"), msgspec.json.encode(pointer))


class Line(Bench):
    """A device that runs version 1 of both modalities, and a plant that has published camera 2."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.settings = RepositorySettings(url=self.server.url)
        self.closing: list[Callable[[], None]] = [self.server.close]

    def begin(self) -> None:
        """Make it so, in a folder that is empty."""
        for modality in PLANT.modalities:
            self.publish(modality, 1)
            assert self.update(modality) == 1
        self.publish("camera", 2)
        self.back_up()

    def close(self) -> None:
        for close in self.closing:
            close()

    def restore(self) -> None:
        """The plant's backup takes the place of what stands in the web server's folder."""
        shutil.rmtree(self.repo.roles.folder)
        shutil.copytree(self.folder / "backup", self.repo.roles.folder)

    def back_up(self) -> None:
        shutil.rmtree(self.folder / "backup", ignore_errors=True)
        shutil.copytree(self.repo.roles.folder, self.folder / "backup")


def begin_line(folder: Path) -> Path:
    """A folder with such a line, for copies."""
    made = Line(folder)
    made.begin()
    made.close()
    return folder


def copy_of(begun: Path, folder: Path) -> Iterator[Line]:
    shutil.copytree(begun, folder, symlinks=True, dirs_exist_ok=True)
    made = Line(folder)
    yield made
    made.close()


def arbitrary_installation(bench: Line) -> None:
    """Anything at all, in metadata that looks right and that no key of the plant signed."""
    thief = Thief(bench)
    camera = thief.read("camera")
    evil = b"#!/bin/sh"
    name = targets.model_name("camera", 9)
    thief.put(camera, name, evil, version=9, space="s1", precision="fp32", sha256="0" * 64)
    thief.point(camera, 9, name)
    thief.publish(camera=camera)


def endless_data(bench: Line) -> None:
    bench.server.instead["camera-2.onnx"] = endless


def endless_metadata(bench: Line) -> None:
    bench.server.instead["timestamp.json"] = endless


def extraneous_dependencies(bench: Line) -> None:
    """The camera's pointer, properly signed, asks for another modality's file beside it."""
    thief = Thief(bench, "camera", "snapshot", "timestamp")
    camera = thief.read("camera")
    thief.point(camera, 2, targets.model_name("microphone", 1))
    thief.publish(camera=camera)


def fast_forward(bench: Line) -> None:
    """With the online keys, version numbers that the plant never reaches."""
    thief = Thief(bench, "snapshot", "timestamp")
    snapshot, timestamp = thief.read("snapshot"), thief.read("timestamp")
    snapshot.signed.version = timestamp.signed.version = FAR
    snapshot.signed.meta["microphone.json"] = MetaFile(version=FAR)
    timestamp.signed.snapshot_meta = MetaFile(version=FAR)
    thief.write("snapshot", snapshot)
    thief.write("timestamp", timestamp)


def fast_forward_at_first(bench: Line) -> None:
    """The same against a device that has seen nothing yet, and follows; then the plant's own state is back."""
    shutil.rmtree(bench.folder / "state" / "repository")
    fast_forward(bench)
    bench.updater.fetch("camera")
    bench.restore()


def indefinite_freeze(bench: Line) -> None:
    """The same state is shown for ever: longer than the timestamp was signed for."""
    bench.repository(SystemClock().now_ns() - 8 * DAY_NS).refresh()


def malicious_mirror(bench: Line) -> None:
    """A mirror that gives no updates."""
    for end in (".json", ".onnx"):
        bench.server.instead[end] = broken


def mix_and_match(bench: Line) -> None:
    """The camera's metadata of yesterday under the name of today's: files that were never together before."""
    folder = bench.repo.roles.folder / "metadata"
    newest = bench.repo.roles.read("camera").signed.version
    shutil.copy(folder / f"{newest - 1}.camera.json", folder / f"{newest}.camera.json")


def rollback(bench: Line) -> None:
    """All of yesterday's state, which was properly signed."""
    old = (bench.repo.roles.folder / "metadata" / "timestamp.json").read_bytes()
    bench.repo.refresh()
    bench.updater.fetch("microphone")
    (bench.repo.roles.folder / "metadata" / "timestamp.json").write_bytes(old)


def slow_retrieval(bench: Line) -> None:
    """Bytes as slowly as the socket's own patience allows."""
    server = RangeServer(bench.repo.roles.folder)
    server.manners.trickle, server.manners.pause_s = 1, 0.05
    bench.closing.append(server.close)
    fetcher = Fetcher(Web(), bench.folder / "partial", SystemClock(), Patience(grace_s=0.3, bytes_per_s=1e9))
    settings = msgspec.structs.replace(bench.settings, url=server.url)
    bench.updater = Updater(settings, bench.folder, bench.folder / "state", bench.slots, fetcher)


def stolen_timestamp_key(bench: Line) -> None:
    """Of the online keys one: what it points at is signed by nobody who may."""
    thief = Thief(bench, "timestamp")
    thief.publish(camera=thief.read("camera"))


def stolen_modality_key(bench: Line) -> None:
    """The microphone's key with the online ones signs camera metadata."""
    thief = Thief(bench, "snapshot", "timestamp")
    thief._stolen["camera"] = keys.signers(bench.repo.roles.keys, "microphone")
    thief.publish(camera=thief.read("camera"))


def stolen_root_key(bench: Line) -> None:
    """One of root's three keys signs a root of the thief's own."""
    thief = Thief(bench)
    root = thief.read("root")
    own = [CryptoSigner.generate_ed25519() for _ in range(2)]
    for signer in own:
        root.signed.add_key(signer.public_key, "root")
    root.signed.version += 1
    thief.write("root", root, keys.signers(bench.repo.roles.keys, "root")[0], *own)


def revoked_key(bench: Line) -> None:
    """The keys were stolen, and replaced since; they sign once more, over what stands there now."""
    thief = Thief(bench, "camera", "snapshot", "timestamp")
    for role in ("camera", "timestamp"):
        bench.repo.rotate(role)
    bench.back_up()
    thief.publish(camera=thief.read("camera"))


def wrong_software(bench: Line) -> None:
    """A file that the plant did sign, under the name of another."""
    shutil.copy(bench.file("camera-1.onnx"), bench.file("camera-2.onnx"))


def wrong_description(bench: Line) -> None:
    """Version 2, properly signed by a stolen key, is version 1's file."""
    thief = Thief(bench, "camera", "snapshot", "timestamp")
    camera = thief.read("camera")
    one = camera.signed.targets[targets.model_name("camera", 1)]
    name = targets.model_name("camera", 3)
    thief.put(camera, name, bench.file("camera-1.onnx").read_bytes(), **one.custom)
    thief.point(camera, 3, name)
    thief.publish(camera=camera)


@dataclass(frozen=True)
class Attack:
    """What somebody does, the check that refuses it, what that names, and what lets devices follow again."""

    does: Callable[[Line], None]
    check: str
    names: str
    mend: Callable[[Line], object] = lambda bench: None


def serve_honestly(bench: Line) -> None:
    """Another, honest web server on the same repository."""
    bench.server.instead.clear()
    bench.updater = bench.device(bench.server.url)


def publish_again(bench: Line) -> None:
    """Bring all files back, and sign a newer state."""
    bench.restore()
    bench.publish("camera", 4)


def rotate_online(bench: Line) -> None:
    bench.restore()
    bench.repo.rotate("timestamp")


def rotate_all(bench: Line) -> None:
    """After a machine with online and modality keys was broken into."""
    bench.restore()
    for role in ("camera", "microphone", "snapshot"):
        bench.repo.rotate(role)
    bench.publish("camera", 4)


ATTACKS: dict[str, Attack] = {
    "arbitrary installation": Attack(arbitrary_installation, "signature", "timestamp was signed by 0", publish_again),
    "endless data": Attack(endless_data, "length", "camera", serve_honestly),
    "endless data, metadata": Attack(endless_metadata, "length", "timestamp.json", serve_honestly),
    "extraneous dependencies": Attack(extraneous_dependencies, "pointer", "microphone", rotate_all),
    "fast-forward": Attack(fast_forward, "fast-forward", f"to {FAR}", publish_again),
    "fast-forward, before the first look": Attack(fast_forward_at_first, "rollback", "timestamp", rotate_online),
    "indefinite freeze": Attack(indefinite_freeze, "expired", "timestamp", lambda bench: bench.repo.refresh()),
    "malicious mirrors": Attack(malicious_mirror, "unreachable", ".json", serve_honestly),
    "mix-and-match": Attack(mix_and_match, "mix-and-match", "camera", publish_again),
    "rollback": Attack(rollback, "rollback", "timestamp", publish_again),
    "slow retrieval": Attack(slow_retrieval, "slow", "", serve_honestly),
    "vulnerability to key compromises, timestamp": Attack(
        stolen_timestamp_key, "signature", "snapshot was signed by 0", rotate_online
    ),
    "vulnerability to key compromises, modality": Attack(
        stolen_modality_key, "key", "camera was signed by 0", rotate_all
    ),
    "vulnerability to key compromises, root": Attack(stolen_root_key, "key", "root was signed by 1", publish_again),
    "vulnerability to key compromises, revoked": Attack(revoked_key, "key", "timestamp was signed by 0", publish_again),
    "wrong software installation": Attack(wrong_software, "hash", "camera-2.onnx", publish_again),
    "wrong software installation, described": Attack(wrong_description, "metadata", "camera-3.onnx", rotate_all),
}
NAMED = (  # specification 1.5.2
    "arbitrary installation",
    "endless data",
    "extraneous dependencies",
    "fast-forward",
    "indefinite freeze",
    "malicious mirrors",
    "mix-and-match",
    "rollback",
    "slow retrieval",
    "vulnerability to key compromises",
    "wrong software installation",
)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begin_line(tmp_path_factory.mktemp("line"))


@pytest.fixture
def line(tmp_path: Path, begun: Path) -> Iterator[Line]:
    yield from copy_of(begun, tmp_path)


@pytest.mark.parametrize("name", ATTACKS)
def test_refused_by_its_check_and_followed_again_afterwards(line: Line, name: str) -> None:
    attack = ATTACKS[name]
    attack.does(line)
    for _ in range(2):  # trying again changes nothing
        assert attack.names in line.refuses(attack.check)
    assert line.slots.current("camera").version == line.slots.current("microphone").version == 1
    attack.mend(line)
    assert line.update("camera") in (2, 4)
    assert line.slots.current("microphone").version == 1


def test_every_class_of_the_specification_is_there_and_has_an_error_of_its_own() -> None:
    assert {name.partition(",")[0] for name in ATTACKS} == set(NAMED)
    named = [ATTACKS[name] for name in NAMED if name in ATTACKS]
    assert len({attack.check for attack in named}) == len(named)
    assert len({(attack.check, attack.names) for attack in ATTACKS.values()}) >= len(ATTACKS) - 1  # rollback, seen late


def test_partial_bundle_installation(line: Line) -> None:
    """Uptane's: of two encoders that belong together only one can be had; it is not run beside the other's old one."""
    pair = [tiny_encoder.write(line.folder, modality, 3, space="s2") for modality in PLANT.modalities]
    line.repo.publish(pair)
    both = Candidate(rollout="7f", version=3, targets={}, percent=100.0)
    line.repo.offer(dict.fromkeys(PLANT.modalities, 3), both)
    line.file("microphone-3.onnx").unlink()
    staged = line.updater.fetch("camera")
    line.refuses("missing", "microphone")
    cards = {"camera": card(staged.path), "microphone": card(line.slots.current("microphone").path)}
    with pytest.raises(ReleaseError) as error:
        release.accept(cards["camera"], cards)
    assert error.value.check == "space"
    assert line.slots.current("camera").version == 1


def card(path: Path) -> release.Card:
    return release.from_metadata(onnx_metadata.read(path.read_bytes(), path.name), path.name)


def test_what_was_good_last_is_kept(line: Line) -> None:
    """A refused device judges on with what it has: its slots are whole, its metadata is the last that was good."""
    kept = line.folder / "state" / "repository" / "timestamp.json"
    before = kept.read_bytes()
    ATTACKS["arbitrary installation"].does(line)
    line.refuses("signature")
    assert kept.read_bytes() == before
    assert not line.slots.problem("camera")
