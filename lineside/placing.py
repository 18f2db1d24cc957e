"""A machine to put services on, or an image of one: only what nobody has edited since is overwritten or removed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lineside.errors import LinesideError
from lineside.files import sha256, write_atomic
from lineside.parts import CONFIG, PARTS, Own, Part, Put, own_executable, owner

Do = Callable[[list[str]], None]
# What shall lie where, for a `lineside` command and a version of systemd.
Wanted = Callable[[str, int], tuple[list[Put], list[Own]]]


class Changes(msgspec.Struct, frozen=True):
    """What is to be done, in this order: commands, what goes, what comes, commands. `keep` was edited and stays."""

    before: list[list[str]] = []
    remove: list[str] = []
    write: list[str] = []
    own: list[str] = []
    after: list[list[str]] = []
    keep: list[str] = []

    @property
    def told(self) -> list[str]:
        """One line each."""
        run = [[f"run {' '.join(words)}" for words in commands] for commands in (self.before, self.after)]
        files = [*(f"remove {path}" for path in self.remove), *(f"write {path}" for path in self.write)]
        files += [f"give {path} to its services" for path in self.own]
        return [*run[0], *files, *(f"keep {path}, which was edited" for path in self.keep), *run[1]]


class Machine:
    """The machine whose files lie under `root`; services are started and stopped where it is `live`, not an image."""

    def __init__(self, root: Path, do: Do, part: Part, *, live: bool) -> None:
        self._root, self._do, self._part, self._live = root, do, part, live

    @property
    def systemd(self) -> int:
        """The version of its systemd, by its library; 0 where there is none."""
        places = ("usr/lib/systemd", "usr/lib/*/systemd", "lib/systemd", "lib/*/systemd")
        found = [file.name for place in places for file in self._root.glob(f"{place}/libsystemd-shared-*.so")]
        return max((int(version[0]) for name in found if (version := re.findall(r"\d+", name))), default=0)

    def to_install(self, puts: list[Put], force: bool = False, owns: Sequence[Own] = ()) -> Changes:
        """What makes it so. Raises LinesideError where that would overwrite what a person has edited."""
        known, names = self._installed(self._part), {put.path for put in puts}
        others = self._of_others()
        write = [put.path for put in puts if self._digest(put.path) != put.digest]
        for path in write:
            self._refuse_edited(path, {known.get(path, ""), others.get(path, "")}, force)
        gone = [path for path in known if path not in names and path not in others and self._digest(path)]
        keep = [path for path in gone if self._digest(path) != known[path] and not force]
        remove, own = [path for path in gone if path not in keep], self._foreign(owns)
        if not write and not remove and not own:
            return Changes(keep=keep)
        units = sorted(path.rpartition("/")[2] for path in names if ".target.wants/" in path)
        start = [["systemctl", "daemon-reload"], ["systemctl", "restart", "--no-block", *units]]
        return Changes([], remove, write, own, start if self._live else [], keep)

    def install(self, puts: list[Put], changes: Changes, owns: Sequence[Own] = ()) -> None:
        """Do it."""
        self._clear(changes)
        for put in puts:
            if put.path in changes.write:
                self._write(put)
        if self._part.users in changes.write:
            in_image = [] if self._live else [f"--root={self._root}"]
            self._do(["systemd-sysusers", *in_image, Path(self._part.users).name])
        for put in puts:
            if put.group != "root":
                os.chown(self._at(put.path), 0, self._ids("etc/group")[put.group])
        for path in changes.own:
            self._give(path, owns)
        digests = {put.path: put.digest for put in puts}
        if digests != self._installed(self._part):
            write_atomic(self._at(self._part.manifest), msgspec.json.format(msgspec.json.encode(digests)))
        for command in changes.after:
            self._do(command)

    def to_remove(self, purge: bool = False) -> Changes:
        """What takes it away again: state, and what a person has edited, stay unless `purge`.

        What another part needs too stays in any case.
        """
        part, known, others = self._part, self._installed(self._part), self._of_others()
        there = [path for path in known if self._digest(path) and path not in others]
        keep = [] if purge else [path for path in there if self._digest(path) != known[path]]
        remove = [*(path for path in there if path not in keep), *([part.manifest] if known else [])]
        folders, accounts = (part.folders, part.accounts) if purge else ((), ())
        alone = not others
        remove += [path for path in (*((CONFIG,) if purge and alone else ()), *folders) if self._at(path).exists()]
        stop = [["systemctl", "disable", "--now", *part.units]] if self._live and known else []
        after = [["systemctl", "daemon-reload"]] if stop else []
        needed = {account for other in self._others() for account in other.accounts}
        gone = [name for name in accounts if name not in needed and self._live and name in self._ids("etc/passwd")]
        return Changes(stop, remove, [], [], [*after, *(["userdel", account] for account in gone)], keep)

    def remove(self, changes: Changes) -> None:
        """Do it."""
        self._clear(changes)
        for command in changes.after:
            self._do(command)

    def _clear(self, changes: Changes) -> None:
        for command in changes.before:
            self._do(command)
        for path in changes.remove:
            at = self._at(path)
            if at.is_dir() and not at.is_symlink():
                shutil.rmtree(at)
            else:
                at.unlink(missing_ok=True)
                if at.parent.name.endswith(".service.d") and not any(at.parent.iterdir()):
                    at.parent.rmdir()

    def _write(self, put: Put) -> None:
        at = self._at(put.path)
        if not put.target:
            write_atomic(at, put.data, put.mode)
            return
        at.parent.mkdir(parents=True, exist_ok=True)
        at.unlink(missing_ok=True)
        at.symlink_to(put.target)

    def _refuse_edited(self, path: str, ours: set[str], force: bool) -> None:
        at, now, part = self._at(path), self._digest(path), self._part
        if at.is_dir() and not at.is_symlink():
            raise LinesideError(str(at), "is a folder", f"move what is in it to {part.state}, and delete it")
        if now and now not in ours and not force:
            there = f"--config {CONFIG}/{part.config}"
            mend = f"install with {there} to keep what is there, or with --force to overwrite it"
            raise LinesideError(str(at), "was edited, or is not ours", mend)

    def _foreign(self, owns: Sequence[Own]) -> list[str]:
        """The paths of `owns` below which something belongs to nobody of the services: a person made it as root.

        What one service made in the folder of another is theirs by its group.
        """
        users, groups = self._ids("etc/passwd"), self._ids("etc/group")
        services = {users.get(own.user) for own in owns if own.user != "root"}
        foreign = []
        for own in owns:
            below = [self._at(path).lstat() for path in self._below(own.path) if owner(path, owns) is own]
            known, group = services | {users.get(own.user)}, groups.get(own.group)
            if any(at.st_uid not in known or at.st_gid != group for at in below):
                foreign.append(own.path)
        return foreign

    def _give(self, path: str, owns: Sequence[Own]) -> None:
        """Give a path and what lies below to whom it shall belong; what somebody writes just now comes next time."""
        users, groups = self._ids("etc/passwd"), self._ids("etc/group")
        for below in self._below(path):
            at, own = self._at(below), owner(below, owns)
            if own is not None and own.path == path:
                os.chown(at, users[own.user], groups[own.group])
                at.chmod(own.mode_of(folder=at.is_dir()))

    def _below(self, path: str) -> list[str]:
        """A path and all files and folders below it, without links."""
        at = self._at(path)
        found = [at, *at.rglob("*")] if at.exists() else []
        return [f"/{each.relative_to(self._root)}" for each in found if not each.is_symlink()]

    def _others(self) -> list[Part]:
        """The other parts that are installed here."""
        return [part for part in PARTS if part is not self._part and self._at(part.manifest).exists()]

    def _of_others(self) -> dict[str, str]:
        """What other parts put there: digests by path."""
        return {path: digest for part in self._others() for path, digest in self._installed(part).items()}

    def _digest(self, path: str) -> str:
        """SHA-256 of what lies there; empty where nothing does."""
        at = self._at(path)
        if at.is_symlink():
            return sha256(os.readlink(at).encode())
        return sha256(at.read_bytes()) if at.is_file() else ""

    def _installed(self, part: Part) -> dict[str, str]:
        """What an earlier installation of a part put there: digests by path."""
        manifest = self._at(part.manifest)
        try:
            return msgspec.json.decode(manifest.read_bytes(), type=dict[str, str])
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError as error:
            raise LinesideError(str(manifest), f"is damaged ({error})", "delete it, and use --force") from error

    def _ids(self, file: str) -> dict[str, int]:
        text = (self._root / file).read_text() if (self._root / file).exists() else ""
        rows = (line.split(":") for line in text.splitlines())
        return {row[0]: int(row[2]) for row in rows if len(row) > 2}

    def _at(self, path: str) -> Path:
        return self._root / path.lstrip("/")


@dataclass(frozen=True)
class Asked:
    """What the command line says of an installation: as `lineside edge install --help` tells."""

    root: Path = Path("/")
    executable: str = ""
    dry_run: bool = False
    force: bool = False
    purge: bool = False


def carry_out(part: Part, wanted: Wanted | None, asked: Asked) -> Changes:
    """Put a part in place on this machine, or in the image under its root; without `wanted`, take it away.

    Gives what was done, or would be in a dry run. Raises LinesideError when it is not root's to do.
    """
    if os.geteuid() != 0 and not asked.dry_run:
        mend = "run it with sudo, or with --dry-run to see what it would do"
        raise LinesideError("install", "needs root: it writes to /etc and starts services", mend)
    root = asked.root.resolve()
    machine = Machine(root, command, part, live=root == Path("/"))
    if wanted is None:
        changes = machine.to_remove(asked.purge)
        if not asked.dry_run:
            machine.remove(changes)
        return changes
    puts, owns = wanted(asked.executable or own_executable(), machine.systemd)
    changes = machine.to_install(puts, asked.force, owns)
    if not asked.dry_run:
        machine.install(puts, changes, owns)
    return changes


def command(words: list[str]) -> None:
    """Run a command of the system. Raises LinesideError with what it said."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise LinesideError(words[0], "is not installed", "services need systemd") from error
    if done.returncode:
        raise LinesideError(" ".join(words), f"failed: {done.stderr.strip()}", "mend that, and install again")
