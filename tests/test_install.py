"""An agent as services on a machine: edge.install, lineside.placing and `lineside edge install`."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import edge.install
from edge.__main__ import install as command
from edge.config import DeviceConfig
from edge.install import CAPTURE, NETWORK, capture_unit, wanted
from lineside.config import load, loads
from lineside.errors import ConfigError, LinesideError
from lineside.parts import EDGE, refuse_hidden
from lineside.placing import Changes, Machine

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="puts files of root in place: run it as root")
DEVICE = """
[device]
id = "edge-1"
site = "line1"
station = "press"

[broker]
username = "edge-1"
password_file = "edge-1.password"
ca_file = "keys/ca.pem"

[repository]
url = "http://127.0.0.1:8080/repository"

[[sensors]]
name = "cam0"
modality = "camera"
source = "camera"
device = "{camera}"
"""
OPT = "/opt/lineside/bin/lineside"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A device file with all that it names."""
    folder = tmp_path / "given"
    (folder / "keys").mkdir(parents=True)
    (folder / "device.toml").write_text(DEVICE.format(camera="0"))
    for name in ("edge-1.password", "keys/ca.pem", "root.json"):
        (folder / name).write_text(f"content of {name}")
    return folder / "device.toml"


class Asked:
    """In the place of the system's commands: remembers them, and makes the users that systemd-sysusers would make."""

    def __init__(self, root: Path) -> None:
        self.root, self.commands = root, list[list[str]]()

    def __call__(self, words: list[str]) -> None:
        self.commands.append(words)
        if words[0] == "systemd-sysusers":
            (self.root / "etc/group").write_text("root:x:0:\nlineside:x:997:\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "root").mkdir()
    return Machine(tmp_path / "root", Asked(tmp_path / "root"), EDGE, live=False)


def install(machine: Machine, file: Path, systemd: int = 252, *, force: bool = False) -> Changes:
    puts = wanted(load(file, DeviceConfig), file, OPT, systemd)
    changes = machine.to_install(puts, force)
    machine.install(puts, changes)
    return changes


def lying(root: Path) -> dict[str, int]:
    """All files and links under a root, with their modes."""
    there = (path for path in root.rglob("*") if path.is_symlink() or path.is_file())
    return {str(path.relative_to(root)): path.lstat().st_mode & 0o777 for path in there}


@pytest.mark.parametrize(
    ("camera", "unit"),
    [
        ("0", CAPTURE),
        ("/dev/video2", CAPTURE),
        ("belt.mp4", CAPTURE),
        ("file:///var/belt.mp4", CAPTURE),
        ("nvarguscamerasrc ! nvvidconv ! appsink", CAPTURE),
        ("rtsp://10.0.0.7/stream", NETWORK),
        ("http://127.0.0.1:8090/mjpeg", NETWORK),  # its own loopback is all that a service without a network has
        ("rtspsrc location=rtsp://10.0.0.7 ! decodebin ! appsink", NETWORK),
        ("udpsrc port=5000 ! rtpjpegdepay ! jpegdec ! appsink", NETWORK),
    ],
)
def test_the_network_is_given_only_where_a_camera_is_on_it(camera: str, unit: str):
    assert doctest.testmod(edge.install).failed == 0
    assert capture_unit(loads(DEVICE.format(camera=camera), DeviceConfig)) == unit


def test_a_certificate_that_repository_and_broker_share_can_be_read_by_both(file: Path):
    file.write_text(file.read_text().replace("[repository]", '[repository]\nca_file = "keys/ca.pem"'))
    assert 'ca_file = "keys/ca.pem"\n' in file.read_text()
    modes = {put.path: put.mode for put in wanted(load(file, DeviceConfig), file, OPT, 252)}
    assert modes["/etc/lineside/keys/ca.pem"] == 0o644
    assert modes["/etc/lineside/edge-1.password"] == 0o600


@needs_root
def test_everything_is_put_in_place_and_secrets_are_of_root_alone(machine: Machine, file: Path, tmp_path: Path):
    install(machine, file)
    root = tmp_path / "root"
    modes = lying(root)
    assert {name: mode for name, mode in modes.items() if not name.endswith((".service", "etc/group"))} == {
        "etc/lineside/.installed.json": 0o644,
        "etc/lineside/device.toml": 0o640,
        "etc/lineside/edge-1.password": 0o600,
        "etc/lineside/keys/ca.pem": 0o600,
        "etc/lineside/root.json": 0o644,
        "etc/lineside/state": 0o777,
        "etc/systemd/system/lineside-.service.d/sandbox.conf": 0o644,
        "etc/systemd/system/lineside-uplink.service.d/credentials.conf": 0o644,
        "etc/sysusers.d/lineside.conf": 0o644,
    }
    assert {name for name in modes if name.endswith(".service")} == {
        *(f"etc/systemd/system/{unit}" for unit in (CAPTURE, NETWORK, "lineside-uplink.service")),
        *(f"etc/systemd/system/multi-user.target.wants/{unit}" for unit in (CAPTURE, "lineside-uplink.service")),
    }
    assert (root / "etc/lineside/device.toml").stat().st_gid == 997
    assert os.readlink(root / "etc/lineside/state") == "/var/lib/lineside"
    assert os.readlink(root / f"etc/systemd/system/multi-user.target.wants/{CAPTURE}") == f"../{CAPTURE}"
    assert (root / "etc/systemd/system/lineside-uplink.service.d/credentials.conf").read_text() == (
        "[Service]\nLoadCredential=edge-1.password:/etc/lineside/edge-1.password\n"
        "LoadCredential=ca.pem:/etc/lineside/keys/ca.pem\n"
    )


@needs_root
def test_an_image_is_prepared_without_starting_anything(file: Path, tmp_path: Path):
    (tmp_path / "root").mkdir()
    asked = Asked(tmp_path / "root")
    machine = Machine(tmp_path / "root", asked, EDGE, live=False)
    assert install(machine, file).after == []
    assert asked.commands == [["systemd-sysusers", f"--root={tmp_path / 'root'}", "lineside.conf"]]


@needs_root
def test_a_second_time_changes_nothing(machine: Machine, file: Path, tmp_path: Path):
    install(machine, file)
    before = {path: path.lstat().st_mtime_ns for path in (tmp_path / "root").rglob("*")}
    assert install(machine, file) == Changes()
    assert {path: path.lstat().st_mtime_ns for path in (tmp_path / "root").rglob("*")} == before


@needs_root
def test_a_new_device_file_takes_the_place_of_one_that_nobody_edited(machine: Machine, file: Path, tmp_path: Path):
    install(machine, file)
    file.write_text(DEVICE.format(camera="rtsp://10.0.0.7/stream").replace('ca_file = "keys/ca.pem"\n', ""))
    changes = install(machine, file)
    wants = "/etc/systemd/system/multi-user.target.wants"
    assert set(changes.remove) == {f"{wants}/{CAPTURE}", "/etc/lineside/keys/ca.pem"}
    assert "/etc/lineside/device.toml" in changes.write
    assert f"{wants}/{NETWORK}" in changes.write
    assert not (tmp_path / "root" / wants.lstrip("/") / CAPTURE).is_symlink()


@needs_root
def test_an_edited_file_is_never_overwritten_unasked(machine: Machine, file: Path, tmp_path: Path):
    install(machine, file)
    there = tmp_path / "root/etc/lineside/device.toml"
    edited = DEVICE.format(camera="/dev/video7")
    there.write_text(edited)
    before = lying(tmp_path / "root")
    with pytest.raises(LinesideError, match=r"device\.toml: was edited.*--force"):
        install(machine, file)
    assert there.read_text() == edited
    assert lying(tmp_path / "root") == before
    assert install(machine, there) == Changes()  # the edited one is taken as what is wanted
    assert install(machine, file).write == ["/etc/lineside/device.toml"]  # so it is no longer an edited one
    there.write_text(edited)
    assert install(machine, file, force=True).write == ["/etc/lineside/device.toml"]
    assert there.read_text() == file.read_text()


@needs_root
def test_restart_steps_only_where_systemd_knows_them(machine: Machine, file: Path, tmp_path: Path):
    steps = tmp_path / "root/etc/systemd/system/lineside-.service.d/restart-steps.conf"
    install(machine, file, systemd=253)
    assert not steps.exists()
    install(machine, file, systemd=254)
    assert "RestartSteps=" in steps.read_text()


def test_the_version_of_systemd_is_read_from_its_library(machine: Machine, tmp_path: Path):
    assert machine.systemd == 0
    folder = tmp_path / "root/usr/lib/x86_64-linux-gnu/systemd"
    folder.mkdir(parents=True)
    (folder / "libsystemd-shared-255.so").touch()
    assert machine.systemd == 255


@needs_root
def test_removal_leaves_state_and_what_was_edited_and_purging_leaves_nothing(
    machine: Machine, file: Path, tmp_path: Path
):
    root = tmp_path / "root"
    install(machine, file)
    (root / "var/lib/lineside").mkdir(parents=True)
    (root / "var/lib/lineside/outbox.db").touch()
    (root / "etc/lineside/device.toml").write_text("edited")
    changes = machine.to_remove()
    machine.remove(changes)
    assert changes.keep == ["/etc/lineside/device.toml"]
    assert set(lying(root)) == {"etc/lineside/device.toml", "var/lib/lineside/outbox.db", "etc/group"}
    assert not list((root / "etc/systemd/system").glob("*.d"))
    assert machine.to_remove() == Changes()
    machine.remove(machine.to_remove(purge=True))
    assert set(lying(root)) == {"etc/group"}


@needs_root
def test_on_this_machine_services_are_stopped_and_started(file: Path, tmp_path: Path):
    """As on `/`, but for the files, which lie elsewhere."""
    machine = Machine(tmp_path / "root", Asked(tmp_path / "root"), EDGE, live=True)
    (tmp_path / "root").mkdir()
    assert install(machine, file).after == [
        ["systemctl", "daemon-reload"],
        ["systemctl", "restart", "--no-block", CAPTURE, "lineside-uplink.service"],
    ]
    assert install(machine, file).after == []
    (tmp_path / "root/etc/passwd").write_text("root:x:0:0::/:\nlineside-uplink:x:998:998::/:\n")
    changes = machine.to_remove(purge=True)
    assert changes.before == [["systemctl", "disable", "--now", CAPTURE, NETWORK, "lineside-uplink.service"]]
    assert changes.after == [["systemctl", "daemon-reload"], ["userdel", "lineside-uplink"]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (('id = "edge-1"', 'id = "edge-1"\nstate_dir = "/data"'), r"state_dir: is '/data'; leave it out"),
        (('id = "edge-1"', 'id = "edge-1"\nstate_dir = "../data"'), r"\.\./data: lies outside"),
        (("keys/ca.pem", "gone.pem"), r"gone\.pem: is named by the device file and cannot be read"),
        (("keys/ca.pem", "../ca.pem"), r"\.\./ca\.pem: lies outside the device file's folder"),
        (("keys/ca.pem", "keys/edge-1.password"), "two of its files have the same name"),
    ],
)
def test_what_a_service_could_not_reach_is_refused_by_name(file: Path, change: tuple[str, str], told: str):
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(ConfigError, match=told):
        wanted(load(file, DeviceConfig), file, OPT, 252)


@pytest.mark.parametrize("path", ["/home/me/venv/bin/lineside", "/root/python", "/tmp/x"])
def test_an_environment_that_services_cannot_see_is_refused(path: str, file: Path):
    with pytest.raises(LinesideError, match=r"a service cannot see what lies under .*python3 -m venv /opt/lineside"):
        refuse_hidden(path)
    with pytest.raises(LinesideError, match="cannot"):
        wanted(load(file, DeviceConfig), file, path, 252)
    with pytest.raises(LinesideError, match="cannot stand in a unit"):
        wanted(load(file, DeviceConfig), file, "/opt/my line/lineside", 252)


@needs_root
def test_a_state_folder_in_the_place_of_the_link_is_refused(machine: Machine, file: Path, tmp_path: Path):
    (tmp_path / "root/etc/lineside/state").mkdir(parents=True)
    with pytest.raises(LinesideError, match="is a folder; move what is in it to /var/lib/lineside"):
        install(machine, file, force=True)


def test_a_secret_is_read_from_where_systemd_hands_it_over(file: Path, tmp_path: Path):
    broker = load(file, DeviceConfig).broker
    (tmp_path / "handed").mkdir()
    (tmp_path / "handed" / "ca.pem").touch()
    handed = broker.handed(tmp_path / "handed")
    assert handed.ca_file == str(tmp_path / "handed" / "ca.pem")
    assert handed == msgspec.structs.replace(broker, ca_file=handed.ca_file)  # what was not handed over is as it was


def run(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lineside", "edge", "install", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


def test_the_command_shows_what_it_would_do_and_does_nothing(file: Path, tmp_path: Path):
    root = tmp_path / "image"
    root.mkdir()
    done = run("--config", str(file), "--root", str(root), "--executable", OPT, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert "/etc/lineside/device.toml" in told["write"]
    assert list(root.iterdir()) == []


def test_without_root_the_command_refuses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LinesideError, match=r"install: needs root.*run it with sudo, or with --dry-run"):
        command(remove=True)
