"""A machine whose first process is systemd, in a container: a small Debian with the wheel of this checkout in it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lineside.clock import NS, SystemClock
from tests.line_broker import wait

ROOT = Path(__file__).parent.parent
PLACE = "/opt/lineside"
TOOLS = ("mmdebstrap", "systemd-nspawn", "nsenter")
SYSTEM = "systemd,systemd-sysv,dbus,python3,procps"
DEVICES = (("video0", "c", "81:0"), ("snd/pcmC0D0c", "c", "116:24"), ("disk0", "b", "8:0"))
LINESIDE = f"#!{PLACE}/bin/python\nfrom lineside.cli import main\nmain()\n"

# Run inside a service's own sandbox: what each attempt came to.
PROBE = """
import ctypes, errno, json, mmap, os, pathlib, socket, subprocess, sys

def shared():
    with open("/dev/shm/lineside-probe", "x"):
        os.unlink("/dev/shm/lineside-probe")

def unshare():
    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "")

state = pathlib.Path(os.environ["STATE_DIRECTORY"])
handed = os.environ.get("CREDENTIALS_DIRECTORY", "/none")
attempts = {
    "open an internet socket": lambda: socket.socket(socket.AF_INET).close(),
    "read a home": lambda: os.listdir("/home/line"),
    "write to /etc": lambda: open("/etc/new", "w"),
    "write its own state": lambda: (state / "probe").write_text("x"),
    "read the device file": lambda: open("/etc/lineside/device.toml").close(),
    "read the broker's password": lambda: open("/etc/lineside/edge-1.password"),
    "read what systemd hands it": lambda: open(f"{handed}/edge-1.password").close(),
    "read the capture's state": lambda: os.listdir("/var/lib/lineside"),
    "read the uplink's state": lambda: os.listdir("/var/lib/lineside-uplink"),
    "open a camera": lambda: os.open("/dev/video0", os.O_RDONLY),
    "open a sound card": lambda: os.open("/dev/snd/pcmC0D0c", os.O_RDONLY),
    "open a disk": lambda: os.open("/dev/disk0", os.O_RDONLY),
    "make a namespace": unshare,
    "make code as it runs": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC),
    "bind itself to a core": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
    "run in real time": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "share memory": shared,
    "start a process": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
    "read /proc/cpuinfo": lambda: open("/proc/cpuinfo").close(),
    "see other processes": lambda: os.listdir("/proc/1"),
}
came_to = {}
for what, attempt in attempts.items():
    try:
        attempt()
        came_to[what] = "done"
    except OSError as error:
        came_to[what] = errno.errorcode[error.errno]
came_to["interfaces"] = sorted(line.split(":")[0].strip() for line in open("/proc/self/net/dev") if ":" in line)
print(json.dumps(came_to))
"""


def why_not() -> str:
    """Why no machine can be booted here; empty where one can."""
    if os.geteuid() != 0:
        return "boots a container: run it as root"
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    return f"{', '.join(missing)} not installed (apt-get install mmdebstrap systemd-container)" if missing else ""


class Guest:
    """One machine, from an empty folder to power off."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self._clock, self._console = SystemClock(), folder / "console"
        self._begun_ns = self._clock.now_ns()
        self._machine: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def seconds(self) -> float:
        """Since it was made, or since `again`."""
        return (self._clock.now_ns() - self._begun_ns) / NS

    def again(self) -> None:
        self._begun_ns = self._clock.now_ns()

    def build(self, *more: str) -> None:
        """A minimal Debian with `more` packages, an environment in /opt/lineside with our wheel.

        What that needs lies on this machine.
        """
        packages = ",".join([SYSTEM, *more])
        words = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", "bookworm", str(self.root)]
        if (done := subprocess.run(words, capture_output=True, text=True, check=False)).returncode:
            pytest.skip(f"no Debian can be fetched: {done.stderr.strip()[-300:]}")
        _run("chroot", str(self.root), "python3", "-m", "venv", "--without-pip", PLACE)
        site = next((self.root / PLACE[1:] / "lib").glob("python3.*/site-packages"))
        wheels = self.root.parent / "wheel"
        _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), str(ROOT))
        wheel = str(next(wheels.glob("*.whl")))
        _run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", str(site), wheel)
        (site / "needs.pth").write_text("/opt/needs\n")
        self.write(f"{PLACE}/bin/lineside", LINESIDE, 0o755)
        (self.root / "opt/needs").mkdir()

    @property
    def python(self) -> str:
        """The version of its Python, such as python3.11."""
        return next((self.root / PLACE[1:] / "lib").iterdir()).name

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        at = self.root / path.lstrip("/")
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(text)
        at.chmod(mode)

    def boot(self) -> None:
        """Start it; returns when commands can be given to it."""
        words = ["systemd-nspawn", f"--directory={self.root}", "--boot", "--register=no", "--keep-unit", "--quiet"]
        words += ["--private-network", "--link-journal=no", "--console=pipe", f"--machine=lineside-{os.getpid()}"]
        words += ["--system-call-filter=bpf"]  # with it, and one tree of control groups, DeviceAllow is in force
        words += [f"--bind-ro={sysconfig.get_paths()['purelib']}:/opt/needs"]
        environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        with self._console.open("wb") as console:
            self._machine = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environment
            )
        assert wait(self._found_leader), self._console.read_text()
        assert wait(lambda: self.do("systemctl", "list-units").returncode == 0)
        self.do("mkdir", "-p", "/dev/snd")
        for name, kind, number in DEVICES:  # no driver answers for them here: who may open them gets ENXIO
            self.do("mknod", "-m", "666", f"/dev/{name}", kind, *number.split(":"))

    def do(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as root."""
        inside = ["nsenter", "-t", str(self._leader), "-m", "-p", "-u", "-i", "-n", "-C", "--", *words]
        return subprocess.run(inside, capture_output=True, text=True, check=False)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.do("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def is_active(self, unit: str) -> bool:
        return self.show(unit, "ActiveState") == "active"

    def signal(self, unit: str, name: str) -> None:
        """Send a signal to the main process of a unit."""
        self.do("systemctl", "kill", f"--signal={name}", "--kill-whom=main", unit)

    def journal(self, unit: str) -> str:
        return self.do("journalctl", "--no-pager", "-o", "cat", "-u", unit).stdout

    def probe(self, unit: str) -> dict[str, str]:
        """What a program comes to in the sandbox of a unit."""
        self.write("/opt/lineside/probe.py", PROBE)
        text = (self.root / "etc/systemd/system" / unit).read_text()
        drop = ("Conflicts=", "Restart", "Watchdog", "RuntimeDirectory", "ExecStart=", "Type=", "WantedBy", "[Install]")
        kept = "\n".join(line for line in text.splitlines() if not line.startswith(drop))
        probe = unit.replace("lineside-", "lineside-probe-")
        run = f"Type=oneshot\nExecStart={PLACE}/bin/python {PLACE}/probe.py\nStandardError=journal"
        self.write(f"/etc/systemd/system/{probe}", kept.replace("[Service]", f"[Service]\n{run}"))
        own = self.root / "etc/systemd/system" / f"{unit}.d/credentials.conf"
        if own.exists():
            self.write(f"/etc/systemd/system/{probe}.d/credentials.conf", own.read_text())
        self.do("systemctl", "daemon-reload")
        done = self.do("systemctl", "start", probe)
        assert done.returncode == 0, self.journal(probe)

        def said() -> list[str]:
            return [line for line in self.journal(probe).splitlines() if line[:1] == "{"]

        assert wait(said), self.journal(probe)  # the journal reads what a unit said now and then after its end
        told: dict[str, str] = json.loads(said()[-1])
        return told

    def off(self) -> None:
        """Power off; the folder stays."""
        if self._machine is not None:
            self.do("systemctl", "poweroff")
            try:
                self._machine.wait(30)
            except subprocess.TimeoutExpired:
                self._machine.kill()

    def _found_leader(self) -> bool:
        assert self._machine is not None
        children = Path(f"/proc/{self._machine.pid}/task/{self._machine.pid}/children").read_text().split()
        self._leader = int(children[0]) if children else 0
        with contextlib.suppress(OSError):  # a helper of its own that has just ended
            return bool(self._leader) and Path(f"/proc/{self._leader}/comm").read_text() == "systemd\n"
        return False


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr}"
