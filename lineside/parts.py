"""What runs as services, and what shall lie where for it: the table of parts, their units, users and folders."""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lineside.errors import LinesideError
from lineside.files import sha256

CONFIG, UNITS = "/etc/lineside", "/etc/systemd/system"
PLANT = "/var/lib/lineside-plant"
PLACE = "/opt/lineside/bin/lineside"  # in the units as they are written; that of this environment takes its place
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # from the services, by ProtectHome and PrivateTmp
STEPS_SINCE = 254  # systemd's RestartSteps


@dataclass(frozen=True)
class Part:
    """What belongs to the services of one part: its units, the state that it has elsewhere, its accounts.

    `config` is the file that it is installed by, `state` where it keeps what must not lie in /etc.
    """

    name: str
    units: tuple[str, ...]
    folders: tuple[str, ...]
    accounts: tuple[str, ...]
    config: str
    state: str

    @property
    def users(self) -> str:
        """Where its accounts are described (sysusers.d)."""
        return f"/etc/sysusers.d/{self.file}.conf"

    @property
    def manifest(self) -> str:
        """Where it is noted what was put in place, with digests."""
        return f"{CONFIG}/.installed{'' if self.name == 'edge' else f'-{self.name}'}.json"

    @property
    def file(self) -> str:
        """Name of the file of its accounts, without its ending."""
        return "lineside" if self.name == "edge" else f"lineside-{self.name}"


EDGE = Part(
    name="edge",
    units=("lineside-capture.service", "lineside-capture-network.service", "lineside-uplink.service"),
    folders=(
        *("/var/lib/lineside", "/var/lib/lineside-uplink"),
        *("/var/cache/lineside", "/var/cache/lineside-uplink"),
    ),
    accounts=("lineside-capture", "lineside-uplink"),
    config="device.toml",
    state="/var/lib/lineside",
)
HUB = Part(
    name="hub",
    units=("lineside-hub.service", "lineside-refresh.service", "lineside-refresh.timer", "lineside-rollout.service"),
    folders=(),  # a plant's keys are not to be had again: whoever wants them gone deletes them
    accounts=("lineside-hub", "lineside-trainer"),
    config="plant.toml",
    state=PLANT,
)
TRAIN = Part(
    name="train",
    units=("lineside-trainer.service", "lineside-trainer.timer"),
    folders=("/var/lib/lineside-trainer", "/var/cache/lineside-trainer"),
    accounts=("lineside-trainer",),
    config="nightly.toml",
    state="/var/lib/lineside-trainer",
)
PARTS = (EDGE, HUB, TRAIN)


@dataclass(frozen=True)
class Put:
    """A file that shall lie at `path`, of root and a group; or, with `target`, a symbolic link."""

    path: str
    data: bytes = b""
    mode: int = 0o644
    group: str = "root"
    target: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of what lies there."""
        return sha256(self.target.encode() if self.target else self.data)


@dataclass(frozen=True)
class Own:
    """A file or folder that shall be of a user and a group, with all below it that no longer path says more of."""

    path: str
    user: str
    group: str
    mode: int

    def mode_of(self, *, folder: bool) -> int:
        """The mode of what lies there: a folder hands its group on (setgid), a file cannot be run.

        >>> keys = Own("/keys", "trainer", "plant", 0o750)
        >>> oct(keys.mode_of(folder=True)), oct(keys.mode_of(folder=False))
        ('0o2750', '0o640')
        """
        return self.mode | 0o2000 if folder else self.mode & 0o666


def owner(path: str, owns: Sequence[Own]) -> Own | None:
    """Who a path shall belong to: the longest of `owns` that it lies at or below; None: nobody says."""
    over = [own for own in owns if PurePosixPath(path).is_relative_to(own.path)]
    return max(over, key=lambda own: len(own.path), default=None)


def units_folder() -> Path:
    """Where the units are taken from: beside this file in a wheel, beside the package in a checkout."""
    here = Path(__file__).parent
    return next(folder for folder in (here / "systemd", here.parent / "systemd") if folder.is_dir())


def units_of(part: Part, executable: str, systemd: int) -> Iterator[Put]:
    """A part's units for this `lineside` command, the sandbox of them all, and its accounts.

    Raises LinesideError where a service could not run the command.
    """
    refuse_hidden(executable)
    if not re.fullmatch(r"/[A-Za-z0-9/._+-]+", executable):
        raise LinesideError(executable, "cannot stand in a unit", "give an absolute path of letters, digits, '._+-'")
    folder = units_folder()
    for unit in part.units:
        yield Put(f"{UNITS}/{unit}", (folder / unit).read_text().replace(PLACE, executable).encode())
    for extra, since in (("sandbox.conf", 0), ("restart-steps.conf", STEPS_SINCE)):
        if systemd >= since:
            yield Put(f"{UNITS}/lineside-.service.d/{extra}", (folder / extra).read_bytes())
    yield Put(part.users, (folder / f"{part.file}.sysusers").read_bytes())


def reaching(unit: str, broker: str) -> Put:
    """What lets a unit whose network is closed reach the broker of this name or address.

    >>> [reaching("a.service", where).data for where in ("127.0.0.1", "10.0.0.5", "broker.plant")]
    [b'[Service]\\n', b'[Service]\\nIPAddressAllow=10.0.0.5\\n', b'[Service]\\nIPAddressAllow=any\\n']
    """
    return Put(f"{UNITS}/{unit}.d/broker.conf", f"[Service]\n{_allowed(broker)}".encode())


def _allowed(broker: str) -> str:
    """The line of a unit that lets it reach the broker; localhost is allowed anyway."""
    try:
        address = ipaddress.ip_address(broker)
    except ValueError:
        return "" if broker in ("", "localhost") else "IPAddressAllow=any\n"
    return "" if address.is_loopback else f"IPAddressAllow={address}\n"


def started(unit: str, target: str = "multi-user") -> Put:
    """The link that has a unit started."""
    return Put(f"{UNITS}/{target}.target.wants/{unit}", target=f"../{unit}")


def own_executable() -> str:
    """The `lineside` command of this environment. Raises LinesideError when a service could not run its Python."""
    refuse_hidden(sys.base_prefix)
    return str(Path(sys.prefix) / "bin" / "lineside")


def refuse_hidden(path: str) -> None:
    """Raise LinesideError where a service cannot see `path`: its Python must lie elsewhere too."""
    if hidden := hidden_by(path):
        mend = "make the environment elsewhere, of a Python that lies elsewhere: python3 -m venv /opt/lineside"
        raise LinesideError(path, f"a service cannot see what lies under {hidden}", mend)


def hidden_by(path: str) -> str:
    """The place under which services see nothing, if `path` lies there."""
    return next((place for place in HIDDEN if PurePosixPath(path).is_relative_to(place)), "")
