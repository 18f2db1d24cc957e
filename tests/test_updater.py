"""The device's way to a signed encoder over real HTTP, and every way in which a repository can lie to it.

Whatever is refused is refused by the name of the check, and the encoder in use stays in use.
"""

from __future__ import annotations

import functools
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tuf.api.metadata import MetaFile, TargetFile

from deploy import repository
from deploy.repository import Repository
from deploy.roles import Roles
from edge.config import RepositorySettings
from edge.slots import Slots
from edge.updater import Updater
from lineside.clock import NS, SimulatedClock, SystemClock
from lineside.errors import ReleaseError
from lineside.plant import PlantConfig
from tests import tiny_encoder

PLANT = PlantConfig(site="line1", devices=["edge-1"])


class Server:
    """A web server on the repository folder that can be told to send something else for a path, by its end."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self.instead: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]] = {}
        outer = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                own = next((send for end, send in outer.instead.items() if self.path.endswith(end)), None)
                own(self) if own else super().do_GET()

            def log_message(self, *_: object) -> None:
                pass

        handler = functools.partial(Handler, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Bench:
    """A plant's repository, a server on it and one device."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repo = self.repository(SystemClock().now_ns())
        self.repo.init(PLANT.modalities)
        self.server = Server(self.repo.roles.folder)
        root = self.repo.roles.folder / "metadata" / "1.root.json"
        (folder / "root.json").write_bytes(root.read_bytes())
        self.slots = Slots(folder / "state", SystemClock())
        self.updater = self.device(self.server.url)

    def repository(self, now_ns: int) -> Repository:
        """The same repository for somebody whose clock shows `now_ns`."""
        return repository.of(PLANT, self.folder, SimulatedClock(now_ns))

    def device(self, url: str) -> Updater:
        settings = RepositorySettings(url=url)
        return Updater(settings, self.folder, self.folder / "state", self.slots)

    def publish(self, modality: str, version: int, **card: object) -> None:
        self.repo.publish([tiny_encoder.write(self.folder, modality, version, **card)])
        self.repo.point(modality, version)

    def update(self, modality: str = "camera") -> int:
        """What the agent does: fetch, then switch; the version in use."""
        if self.updater.fetch(modality):
            self.slots.switch(modality)
        return self.slots.current(modality).version

    def refuses(self, check: str, modality: str = "camera") -> str:
        """The next fetch is refused by the name of that check, and changes nothing."""
        before = (self.slots.current(modality), self.slots.previous(modality))
        with pytest.raises(ReleaseError) as error:
            self.updater.fetch(modality)
        assert error.value.check == check, str(error.value)
        assert (self.slots.current(modality), self.slots.previous(modality)) == before
        assert f"{check} failed" in str(error.value)
        return str(error.value)

    def file(self, end: str) -> Path:
        """The one file of the repository whose path ends so."""
        (found,) = [path for path in self.repo.roles.folder.rglob("*") if str(path).endswith(end)]
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    for modality in PLANT.modalities:
        made.publish(modality, 1)
    assert made.update("camera") == made.update("microphone") == 1
    yield made
    made.server.close()


def test_the_signed_file_arrives_whole_and_is_not_switched_to(bench: Bench) -> None:
    bench.publish("camera", 2)
    slot = bench.updater.fetch("camera")
    assert slot is not None
    assert (slot.version, slot.target, slot.accepted) == (2, "models/camera/camera-2.onnx", False)
    assert slot.path.read_bytes() == (bench.folder / "camera-2.onnx").read_bytes()
    assert bench.slots.current("camera").version == 1
    bench.slots.switch("camera")
    assert bench.slots.current("camera").version == 2
    assert bench.updater.fetch("camera") is None
    assert bench.slots.current("microphone").version == 1


def test_what_has_come_of_a_file_is_kept_until_nothing_is_to_come_any_more(bench: Bench) -> None:
    parts = bench.folder / "state" / "repository" / "partial"
    parts.mkdir(exist_ok=True)
    part = parts / f"{64 * 'a'}.part"
    part.write_bytes(b"half")
    bench.publish("camera", 2)
    bench.updater.look(["camera"])
    assert part.exists()
    assert bench.update("camera") == 2
    bench.updater.look(["camera"])
    assert not part.exists()


def test_a_device_chooses_its_precision(bench: Bench) -> None:
    bench.publish("camera", 2)
    with pytest.raises(ReleaseError, match="not published in int8") as error:
        bench.updater.fetch("camera", "int8")
    assert error.value.check == "missing"
    bench.publish("camera", 2, precision="int8")
    assert bench.updater.fetch("camera", "int8").target == "models/camera/camera-2.int8.onnx"
    assert bench.updater.fetch("camera").target == "models/camera/camera-2.onnx"


def test_a_version_taken_back_comes_from_the_other_slot(bench: Bench) -> None:
    bench.publish("camera", 2)
    assert bench.update() == 2
    bench.repo.step_back("camera")
    bench.server.asked.clear()
    assert bench.update() == 1
    assert bench.slots.previous("camera").version == 2
    assert not any(path.endswith(".onnx") for path in bench.server.asked)


def test_a_device_that_was_rolled_back_stays_there(bench: Bench) -> None:
    bench.publish("camera", 2)
    bench.update()
    bench.repo.step_back("camera")
    bench.slots.rollback("camera")
    assert bench.updater.fetch("camera") is None


def test_a_renewed_root_is_followed_from_the_first_one(bench: Bench) -> None:
    now_ns = SystemClock().now_ns()
    bench.repository(now_ns + 300 * 86_400 * NS).refresh()
    bench.publish("camera", 2)
    assert (bench.repo.roles.folder / "metadata" / "2.root.json").exists()
    assert bench.update() == 2


def test_an_encoder_that_no_key_signed(bench: Bench) -> None:
    bench.publish("camera", 2)
    file = bench.file("timestamp.json")
    file.write_bytes(file.read_bytes().replace(b'"sig": "', b'"sig": "00'))
    bench.refuses("signature")


def test_metadata_signed_by_the_key_of_another_modality(bench: Bench) -> None:
    """The microphone's key makes camera metadata, and even has it listed by snapshot and timestamp."""
    roles = bench.repo.roles
    (roles.keys / "camera.pem").rename(roles.keys / "camera.away")
    (roles.keys / "camera.pem").write_bytes((roles.keys / "microphone.pem").read_bytes())
    forged = roles.read("microphone")
    roles_of_thief = Roles(roles.folder, roles.keys, SystemClock())
    roles_of_thief.commit({"camera": forged})
    bench.refuses("key")


@pytest.mark.parametrize(("thief", "victim"), [("camera", "microphone"), ("microphone", "camera")])
def test_a_modality_cannot_publish_for_another(bench: Bench, thief: str, victim: str) -> None:
    """A role lists another's target: whichever comes first in the delegations, nobody looks for it there."""
    name = f"models/{victim}/current.json"
    role = bench.repo.roles.read(thief)
    role.signed.targets[name] = TargetFile.from_data(name, b'{"version":9,"targets":{}}', ["sha256"])
    bench.repo.roles.commit({thief: role})
    assert bench.updater.fetch(victim) is None
    assert bench.slots.current(victim).version == 1


def test_a_modality_without_publication(bench: Bench) -> None:
    assert "models/series/current.json" in bench.refuses("missing", "series")


def test_expired_metadata(bench: Bench) -> None:
    bench.publish("camera", 2)
    bench.repository(SystemClock().now_ns() - 8 * 86_400 * NS).refresh()
    assert "lineside deploy refresh" in bench.refuses("expired")
    bench.repo.refresh()
    assert bench.update() == 2


def test_metadata_older_than_what_was_seen(bench: Bench) -> None:
    old = bench.file("timestamp.json").read_bytes()
    bench.publish("camera", 2)
    assert bench.update() == 2
    bench.file("timestamp.json").write_bytes(old)
    bench.refuses("rollback")


def test_newer_timestamp_of_an_older_snapshot(bench: Bench) -> None:
    bench.publish("camera", 2)
    bench.update()
    roles = bench.repo.roles
    timestamp = roles.read("timestamp")
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta = MetaFile(version=2)
    timestamp.sign(roles.signer("timestamp"))
    bench.file("timestamp.json").write_bytes(timestamp.to_bytes())
    bench.refuses("rollback")


@pytest.mark.parametrize("end", ["camera-2.onnx", "current.json"])
def test_a_target_of_the_same_length_with_other_bytes(bench: Bench, end: str) -> None:
    bench.publish("camera", 2)
    sha = next(f.hashes["sha256"] for n, f in bench.repo.roles.read("camera").signed.targets.items() if n.endswith(end))
    file = bench.file(f"{sha}.{end}")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    bench.refuses("hash")


def test_a_target_that_is_shorter_than_signed(bench: Bench) -> None:
    bench.publish("camera", 2)
    file = bench.file("camera-2.onnx")
    file.write_bytes(file.read_bytes()[:100])
    bench.refuses("hash")


def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
    """Bytes for as long as somebody takes them."""
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"0" * 65_536)
    except OSError:
        handler.close_connection = True


def cut(handler: http.server.BaseHTTPRequestHandler) -> None:
    """Promise more than is sent, then hang up."""
    handler.send_response(200)
    handler.send_header("Content-Length", "90000")
    handler.end_headers()
    handler.wfile.write(b"0" * 1000)
    handler.close_connection = True


def broken(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_error(500)


@pytest.mark.parametrize("end", ["timestamp.json", "camera-2.onnx", "camera.json"])
@pytest.mark.parametrize(("send", "check"), [(endless, "length"), (cut, "unreachable"), (broken, "unreachable")])
def test_a_server_that_misbehaves(bench: Bench, end: str, send: Callable[..., None], check: str) -> None:
    bench.publish("camera", 2)
    bench.server.instead[end] = send
    bench.refuses(check)
    bench.server.instead.clear()
    assert bench.update() == 2


def test_metadata_that_is_no_metadata(bench: Bench) -> None:
    bench.file("timestamp.json").write_bytes(b"[" * 10_000)
    bench.refuses("metadata")


def test_a_repository_that_lost_its_files(bench: Bench) -> None:
    bench.publish("camera", 2)
    bench.file("camera-2.onnx").unlink()
    bench.refuses("missing")


def test_a_server_that_is_away(bench: Bench) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        bench.updater = bench.device(f"http://127.0.0.1:{taken.getsockname()[1]}")
        bench.refuses("unreachable")
    bench.updater = bench.device("")
    assert "set [repository] url" in bench.refuses("unreachable")


def test_a_model_that_is_signed_but_far_too_large(bench: Bench) -> None:
    bench.publish("camera", 2)
    camera = bench.repo.roles.read("camera")
    huge: TargetFile = camera.signed.targets["models/camera/camera-2.onnx"]
    huge.length = 1 << 40
    bench.repo.roles.commit({"camera": camera})
    bench.refuses("length")


def test_a_description_that_does_not_fit_its_file(bench: Bench) -> None:
    bench.publish("camera", 2)
    camera = bench.repo.roles.read("camera")
    camera.signed.targets["models/camera/camera-2.onnx"].unrecognized_fields["custom"]["version"] = 3
    bench.repo.roles.commit({"camera": camera})
    bench.refuses("metadata")


def test_a_device_without_its_root(bench: Bench) -> None:
    (bench.folder / "root.json").unlink()
    assert "copy root.json" in bench.refuses("missing")


def test_a_device_with_the_root_of_another_plant(bench: Bench, tmp_path: Path) -> None:
    other = repository.of(PLANT, tmp_path / "other", SystemClock())
    other.init(())
    (bench.folder / "root.json").write_bytes((other.roles.folder / "metadata" / "1.root.json").read_bytes())
    bench.refuses("signature")


def test_a_server_away_does_not_hide_behind_what_was_seen(bench: Bench) -> None:
    """Metadata on the device never stands in for the server: news would be missed in silence."""
    bench.publish("camera", 2)
    bench.server.close()
    bench.refuses("unreachable")
