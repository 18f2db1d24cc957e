"""The units, as they are installed: systemd finds nothing to say of them, and little of the machine is exposed."""

from __future__ import annotations

import os
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest

from edge.agent import OPENING_S, RETRY_S
from edge.capture import BACKOFF_S
from edge.config import DeviceConfig
from edge.install import CAPTURE, NETWORK, UPLINK, wanted
from lineside.config import load
from lineside.parts import EDGE, HUB, PARTS, PLANT, TRAIN, units_folder, units_of
from lineside.placing import Machine
from lineside.placing import command as system

ROOT = Path(__file__).parent.parent
AGENT = {CAPTURE: 10, NETWORK: 15, UPLINK: 15}  # tenths, at most
SERVER = {HUB.units[0]: 12, HUB.units[1]: 5, HUB.units[3]: 10, TRAIN.units[0]: 15}
EXPOSURE = {**AGENT, **SERVER}
TIMERS = (HUB.units[2], TRAIN.units[1])
analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of an image with all units, of an agent with a camera on the network."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "root/etc").mkdir(parents=True)
    (folder / "root/etc/group").write_text(f"root:x:0:\nlineside:x:{os.getegid()}:\n")
    file = folder / "device.toml"
    file.write_text(
        '[device]\nid = "edge-1"\nsite = "line1"\nstation = "press"\n[broker]\npassword_file = "a.password"\n'
        '[[sensors]]\nname = "cam0"\nmodality = "camera"\nsource = "camera"\ndevice = "rtsp://10.0.0.7/1"\n'
    )
    (folder / "a.password").write_text("secret")
    puts = wanted(load(file, DeviceConfig), file, "/usr/bin/env", systemd=252)
    machine = Machine(folder / "root", lambda _: None, EDGE, live=False)
    if os.geteuid() != 0:
        pytest.skip("puts files of root in place: run it as root")
    machine.install(puts, machine.to_install(puts))
    for part in (HUB, TRAIN):
        more = list(units_of(part, "/usr/bin/env", systemd=252))
        machine = Machine(folder / "root", lambda _: None, part, live=False)
        machine.install(more, machine.to_install(more))
    return folder / "root"


def unit(installed: Path, name: str) -> str:
    return str(installed / "etc/systemd/system" / name)


def read(name: str) -> RawConfigParser:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read(units_folder() / name)
    return parser


@analyze
@pytest.mark.parametrize("name", [*EXPOSURE, *TIMERS])
def test_systemd_has_nothing_to_say_of_a_unit(installed: Path, name: str):
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit(installed, name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@analyze
@pytest.mark.parametrize("name", EXPOSURE)
def test_little_is_exposed(installed: Path, name: str):
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE[name]}"]
    done = subprocess.run([*command, unit(installed, name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-600:]
    assert f"Overall exposure level for {name}" in done.stdout


@analyze
def test_the_sandbox_is_what_makes_it_little(installed: Path, tmp_path: Path):
    shutil.copy(unit(installed, CAPTURE), tmp_path)  # without the drop-in beside it
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=10", str(tmp_path / CAPTURE)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


def test_the_twin_is_the_same_but_for_the_network():
    alone, twin = dict(read(CAPTURE)["Service"]), dict(read(NETWORK)["Service"])
    assert (alone.pop("PrivateNetwork"), alone.pop("IPAddressDeny")) == ("yes", "any")
    assert alone.pop("RestrictAddressFamilies") == "AF_UNIX"
    assert twin.pop("RestrictAddressFamilies") == "AF_UNIX AF_INET AF_INET6"
    assert alone == twin
    assert read(CAPTURE)["Unit"]["Conflicts"] == NETWORK
    assert read(NETWORK)["Unit"]["Conflicts"] == CAPTURE


def test_the_uplink_has_no_devices_and_cannot_be_mistaken_for_the_capture():
    uplink, capture = read(UPLINK)["Service"], read(CAPTURE)["Service"]
    assert uplink["PrivateDevices"] == "yes"
    assert "DeviceAllow" not in uplink
    assert uplink["User"] != capture["User"]
    assert uplink["Group"] == capture["Group"] == "lineside"
    assert capture["RuntimeDirectory"] == "lineside"


@pytest.mark.parametrize("name", AGENT)
def test_every_service_comes_back_and_is_watched(name: str):
    service = read(name)["Service"]
    assert (service["Type"], service["Restart"], service["WatchdogSignal"]) == ("notify", "always", "SIGABRT")
    assert read(name)["Unit"]["StartLimitIntervalSec"] == "0"
    # What goes round more seldom than this is declared: the agent is fed in the second half of the period.
    assert int(service["WatchdogSec"]) / 2 > RETRY_S
    assert 1.3 * BACKOFF_S[1] < OPENING_S


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("systemd-sysusers"), reason="needs root and systemd-sysusers")
def test_the_users_are_made_in_an_image(installed: Path, tmp_path: Path):
    (tmp_path / "etc/sysusers.d").mkdir(parents=True)
    shutil.copy(installed / "etc/sysusers.d/lineside.conf", tmp_path / "etc/sysusers.d")
    system(["systemd-sysusers", f"--root={tmp_path}", "lineside.conf"])
    users = dict((line.split(":")[0], line) for line in (tmp_path / "etc/passwd").read_text().splitlines())
    assert set(users) == {"lineside-capture", "lineside-uplink"}
    assert all(line.endswith(":/usr/sbin/nologin") for line in users.values())
    groups = {line.split(":")[0] for line in (tmp_path / "etc/group").read_text().splitlines()}
    assert groups == {"lineside", "render", "lineside-capture", "lineside-uplink"}


def test_the_hub_sees_no_key_and_who_signs_anew_has_no_network():
    hub, refresh = (read(unit)["Service"] for unit in HUB.units[:2])
    assert hub["InaccessiblePaths"] == f"-{PLANT}/keys"
    assert hub["ReadOnlyPaths"] == f"-{PLANT}/repository"
    assert (refresh["PrivateNetwork"], refresh["RestrictAddressFamilies"]) == ("yes", "AF_UNIX")
    assert hub["User"] != refresh["User"] == read(TRAIN.units[0])["Service"]["User"]


def test_a_night_reaches_this_machine_alone_and_is_not_begun_twice():
    trainer = read(TRAIN.units[0])["Service"]
    assert (trainer["Type"], trainer["IPAddressDeny"], trainer["IPAddressAllow"]) == ("oneshot", "any", "localhost")
    assert "Restart" not in trainer  # what is open goes on the next night; what takes a person waits for one
    for unit in TIMERS:
        timer = read(unit)["Timer"]
        assert timer["Persistent"] == "yes"
        assert timer["RandomizedDelaySec"]


def test_every_unit_of_the_table_is_there_and_no_other():
    files = {path.name for path in units_folder().iterdir() if path.suffix in (".service", ".timer")}
    assert files == {unit for part in PARTS for unit in part.units}


def test_units_are_no_package():
    assert units_folder() == ROOT / "systemd"
    assert not list((ROOT / "systemd").rglob("*.py"))
