"""The services for real, on a machine whose first process is systemd: started, hung, killed, watched, taken away.

Prints a table of what held, and in how many seconds.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from edge.config import DeviceConfig, DeviceSettings
from edge.install import CAPTURE, NETWORK, UPLINK
from tests.line_broker import wait
from tests.line_device import SENSORS, SITE, install, record
from tests.line_guest import PLACE, ROOT, Guest, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]
SIMULATED = "\n".join(
    f'[[sensors]]\nname = "{sensor.name}"\nmodality = "{sensor.modality}"\nsource = "simulation"' for sensor in SENSORS
)
CAMERA = '[[sensors]]\nname = "cam1"\nmodality = "camera"\nsource = "camera"\ndevice = "rtsp://127.0.0.1:8554/line"'
DEVICE = f"""
[device]
id = "edge-1"
site = "{SITE}"
station = "press"

[broker]
username = "edge-1"
password_file = "edge-1.password"

[commissioning]
recording = "normal.mcap"

{SIMULATED}
"""

INSTALL = (f"{PLACE}/bin/lineside", "edge", "install", "--config", "/etc/lineside/device.toml")
Held = list[tuple[str, float]]


@pytest.fixture(scope="module")
def held(request: pytest.FixtureRequest) -> Iterator[Held]:
    """What held, with the seconds that it took."""
    rows: Held = []
    yield rows
    table = "\n".join(["", "| what held | seconds |", "|---|---:|", *(f"| {what} | {s:.1f} |" for what, s in rows), ""])
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        print(table, flush=True)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory, held: Held) -> Iterator[Guest]:
    folder = tmp_path_factory.mktemp("guest")
    made = Guest(folder)
    made.build()
    if made.python != f"python{sys.version_info.major}.{sys.version_info.minor}":
        pytest.skip(f"the machine has {made.python}, and the packages of this environment are for another")
    held.append(("a machine is built", made.seconds()))
    given = folder / "given"
    given.mkdir()
    (given / "device.toml").write_text(DEVICE)
    (given / "edge-1.password").write_text("secret")
    settings = DeviceSettings(id="edge-1", site=SITE, station="press")
    record(given / "normal.mcap", DeviceConfig(device=settings, sensors=SENSORS), 60.0)
    made.again()
    command = [sys.executable, "-m", "lineside", "edge", "install", "--config", str(given / "device.toml")]
    command += ["--root", str(made.root), "--executable", f"{PLACE}/bin/lineside", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    held.append(("lineside edge install --root puts all in place", made.seconds()))
    install(made.root / "var/lib/lineside")
    made.write("/home/line/notes", "private")
    made.again()
    made.boot()
    yield made
    made.off()


def test_it_boots_is_ready_and_watches_the_line(guest: Guest, held: Held):
    assert wait(lambda: guest.is_active(CAPTURE), 60), guest.journal(CAPTURE)
    held.append(("boot to READY of the capture", guest.seconds()))
    assert wait(lambda: guest.show(CAPTURE, "StatusText").startswith("watching"), 60), guest.show(CAPTURE, "StatusText")
    held.append(("boot to `watching` in STATUS", guest.seconds()))
    assert wait(lambda: guest.is_active(UPLINK))
    assert guest.do("systemctl", "--failed", "--no-legend").stdout == ""
    assert guest.show(CAPTURE, "NRestarts") == "0"


def test_what_killed_it_does_not_keep_it_from_coming_back(guest: Guest, held: Held):
    before = guest.show(CAPTURE, "MainPID")
    guest.signal(CAPTURE, "KILL")
    guest.again()
    assert wait(lambda: guest.show(CAPTURE, "MainPID") not in {before, "0"} and guest.is_active(CAPTURE))
    held.append(("kill -9 to READY", guest.seconds()))
    assert wait(lambda: guest.show(CAPTURE, "StatusText").startswith("watching"))
    assert guest.show(CAPTURE, "NRestarts") == "1"


def test_a_hung_agent_is_ended_by_the_watchdog_and_comes_back(guest: Guest, held: Held):
    before = guest.show(CAPTURE, "MainPID")
    guest.signal(CAPTURE, "STOP")
    guest.again()
    assert wait(lambda: guest.show(CAPTURE, "MainPID") not in {before, "0"} and guest.is_active(CAPTURE))
    held.append(("SIGSTOP to READY of the next, WatchdogSec=30", guest.seconds()))
    assert "Watchdog timeout (limit 30s)!" in guest.journal(CAPTURE)
    assert guest.show(CAPTURE, "NRestarts") == "2"


def test_the_watchdogs_signal_leaves_the_stack_of_every_thread_and_no_core(guest: Guest, held: Held):
    before = guest.show(CAPTURE, "MainPID")
    guest.signal(CAPTURE, "ABRT")
    guest.again()
    assert wait(lambda: guest.show(CAPTURE, "MainPID") not in {before, "0"} and guest.is_active(CAPTURE))
    held.append(("SIGABRT to READY, with stacks in the journal", guest.seconds()))
    journal = guest.journal(CAPTURE)
    assert "Fatal Python error: Aborted" in journal
    assert all(f"in {name}" in journal for name in ("_step", "_chores", "_tell"))
    assert guest.show(CAPTURE, "LimitCORE") == "0"


SAME = {
    "read a home": "EACCES",
    "write to /etc": "EROFS",
    "write its own state": "done",
    "read the device file": "done",
    "read the broker's password": "EACCES",
    "make a namespace": "EPERM",
    "run in real time": "EPERM",
    "share memory": "done",
    "start a process": "done",
    "see other processes": "ENOENT",
    "interfaces": ["lo"],  # the machine has no more
}
SENSES = {"open a camera": "ENXIO", "open a sound card": "ENXIO", "open a disk": "EPERM"}  # allowed, allowed, refused
NO_DEVICES = dict.fromkeys(SENSES, "ENOENT")
DIFFERS = {
    CAPTURE: {
        **SENSES,
        "open an internet socket": "EAFNOSUPPORT",
        "read the uplink's state": "EACCES",
        "read what systemd hands it": "ENOENT",
        "bind itself to a core": "done",
        "read /proc/cpuinfo": "done",
    },
    NETWORK: {**SENSES, "open an internet socket": "done", "read the uplink's state": "EACCES"},
    UPLINK: {
        **NO_DEVICES,
        "open an internet socket": "done",
        "read the capture's state": "EACCES",
        "read what systemd hands it": "done",
        "make code as it runs": "EPERM",
    },
}


@pytest.mark.parametrize("unit", DIFFERS)
def test_the_sandbox_holds(guest: Guest, held: Held, unit: str):
    guest.again()
    came_to = guest.probe(unit)
    expected = {**SAME, **DIFFERS[unit]}
    assert {what: came_to[what] for what in expected} == expected
    held.append((f"{len(expected)} promises of the sandbox of {unit}", guest.seconds()))


def test_the_agent_itself_runs_without_any_privilege_and_on_a_network_of_its_own(guest: Guest):
    pid = guest.show(CAPTURE, "MainPID")
    status = dict(line.split(":\t", 1) for line in guest.do("cat", f"/proc/{pid}/status").stdout.splitlines())
    assert (status["CapEff"], status["CapBnd"], status["NoNewPrivs"], status["Seccomp"]) == (
        "0" * 16,
        "0" * 16,
        "1",
        "2",
    )
    own, first = (guest.do("readlink", f"/proc/{one}/ns/net").stdout for one in (pid, "1"))
    assert own.startswith("net:")
    assert own != first


def test_with_a_camera_on_the_network_the_twin_takes_over(guest: Guest, held: Held):
    file = guest.root / "etc/lineside/device.toml"
    guest.again()
    assert "all is as it should be" in guest.do(*INSTALL).stdout
    file.write_text(f"{file.read_text()}\n{CAMERA}\n")
    done = guest.do(*INSTALL)
    assert done.returncode == 0, done.stderr
    assert wait(lambda: guest.is_active(NETWORK) and not guest.is_active(CAPTURE), 60), guest.journal(NETWORK)
    held.append(("lineside edge install with an RTSP camera to READY of the twin", guest.seconds()))
    assert wait(lambda: "cam1: cannot open rtsp://127.0.0.1:8554/line" in guest.show(NETWORK, "StatusText"))
    assert guest.show(NETWORK, "NRestarts") == "0", guest.journal(NETWORK)
    assert guest.show(CAPTURE, "Result") == "success"  # it stopped in order when the other came


def test_it_is_taken_away_but_for_its_state_and_then_wholly(guest: Guest, held: Held):
    guest.again()
    done = guest.do(f"{PLACE}/bin/lineside", "edge", "install", "--remove")
    assert done.returncode == 0, done.stderr
    held.append(("lineside edge install --remove", guest.seconds()))
    assert not any(guest.is_active(unit) for unit in (CAPTURE, NETWORK, UPLINK))
    assert guest.show(UPLINK, "Result") == "success"
    there = {path.name for path in (guest.root / "etc/systemd/system").rglob("lineside-*") if "probe" not in path.name}
    assert there <= {f"{unit}.d" for unit in (CAPTURE, NETWORK, UPLINK)}  # of this test's probes
    assert not list((guest.root / "etc/lineside").rglob("*"))
    assert (guest.root / "var/lib/lineside/outbox.db").exists()
    assert guest.do(f"{PLACE}/bin/lineside", "edge", "install", "--remove", "--purge").returncode == 0
    assert not (guest.root / "var/lib/lineside").exists()
    assert "lineside-" not in (guest.root / "etc/passwd").read_text()
