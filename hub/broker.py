"""mosquitto as our child: written configuration, start, watch with back-off, stop."""

from __future__ import annotations

import getpass
import logging
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path

from hub import broker_files, ports
from lineside.clock import NS, Clock
from lineside.errors import BrokerError
from lineside.files import write_atomic
from lineside.plant import PlantConfig

LOG = logging.getLogger("hub.broker")
START_S, STOP_S = 10.0, 5.0
BACKOFF_S = (0.2, 1.0, 2.0, 5.0, 10.0)
STEADY_S = 60.0  # after that long without a death the next one is a first one again


def write_files(plant: PlantConfig, base: Path, folder: Path) -> Path:
    """Write mosquitto.conf, acl and passwd (hashed) into `folder`, readable by us alone; gives the conf's path.

    Raises ConfigError for a missing password, BrokerError when mosquitto is not installed.
    """
    lines = [f"{user}:{password}\n" for user, password in broker_files.passwords(plant, base).items()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    folder.chmod(0o700)
    # Hashed under another name, so that `passwd` never holds a plain password; never in argv, where `ps` shows it.
    plain = folder / "passwd.new"
    write_atomic(plain, "".join(lines).encode(), 0o600)
    try:
        hashing = subprocess.run([program("mosquitto_passwd"), "-U", plain], capture_output=True, check=False)
        if hashing.returncode:
            mend = "reinstall it: apt-get install --reinstall mosquitto"
            raise BrokerError("mosquitto_passwd", hashing.stderr.decode(errors="replace").strip(), mend)
        plain.chmod(0o600)
        os.replace(plain, folder / "passwd")
    finally:
        plain.unlink(missing_ok=True)
    write_atomic(folder / "acl", broker_files.acl_text(plant).encode(), 0o600)
    conf = broker_files.conf_text(plant, base, folder, getpass.getuser())
    write_atomic(folder / "mosquitto.conf", conf.encode(), 0o600)
    return folder / "mosquitto.conf"


def program(name: str, path: str | None = None) -> str:
    """Where a program of mosquitto lies; Debian keeps the broker in /usr/sbin, which is not on everybody's PATH."""
    search = (os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin") if path is None else path
    found = shutil.which(name, path=search)
    if found is None:
        raise BrokerError(name, "is not installed", "apt-get install mosquitto")
    return found


class Broker:
    """One supervised mosquitto: a child that dies is started again, with back-off, until `stop`.

    One process at a time may own the state folder: hold `lineside.lock.only_one`.
    """

    def __init__(self, plant: PlantConfig, base: Path, clock: Clock) -> None:
        self._plant, self._base, self._clock = plant, base.resolve(), clock
        self.folder = self._base / plant.state / "broker"
        self.restarts = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="broker", daemon=True)

    @property
    def pid(self) -> int | None:
        """The process id of the running child, None between two lives."""
        child = self._child
        return child.pid if child is not None and child.poll() is None else None

    def start(self) -> None:
        """Write the files, start mosquitto, return when it accepts connections.

        Raises PortInUseError, ConfigError or BrokerError; then nothing is left running.
        """
        executable = program("mosquitto")
        try:
            self._end_orphan()
            ports.require_free(self._plant.broker.listen, self._plant.broker.port, "[broker] port of the plant file")
            self._command = [executable, "-c", str(write_files(self._plant, self._base, self.folder))]
            self._launch()
            self._await_ready()
        except BaseException:
            self.stop()
            raise
        self._watcher.start()

    def stop(self) -> None:
        """End the child (terminate, then kill) and stop watching. May be called twice."""
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()
        if (child := self._child) is not None:
            child.terminate()
            try:
                child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _end_orphan(self) -> None:
        """End the mosquitto of a hub that was killed; it has no other owner, for we hold the state folder."""
        try:
            pid = int((self.folder / "mosquitto.pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return
        if str(self.folder / "mosquitto.conf").encode() not in command:
            return
        LOG.warning("ending mosquitto %d, left behind by a hub that was killed", pid)
        os.kill(pid, signal.SIGTERM)
        deadline = self._clock.now_ns() + round(STOP_S * NS)
        while Path(f"/proc/{pid}").exists() and self._clock.now_ns() < deadline:
            self._stopping.wait(0.05)

    def _launch(self) -> None:
        with (self.folder / "mosquitto.log").open("ab") as log:
            # In a session of its own, so that Ctrl-C in the terminal reaches the hub alone, which ends it in order.
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _await_ready(self) -> None:
        deadline = self._clock.now_ns() + round(START_S * NS)
        assert self._child is not None
        while not ports.answers(self._plant.broker.listen, self._plant.broker.port):
            if self._child.poll() is not None or self._clock.now_ns() > deadline:
                last = (self.folder / "mosquitto.log").read_text(errors="replace").strip().splitlines()[-1:]
                mend = f"see {self.folder / 'mosquitto.log'}"
                raise BrokerError("mosquitto", f"does not start ({' '.join(last) or 'no word'})", mend)
            self._stopping.wait(0.05)

    def _watch(self) -> None:
        deaths, started_ns = 0, self._clock.now_ns()
        while not self._stopping.wait(0.1):
            assert self._child is not None
            if (code := self._child.poll()) is None:
                continue
            deaths = 0 if self._clock.now_ns() - started_ns > STEADY_S * NS else deaths
            pause_s = BACKOFF_S[min(deaths, len(BACKOFF_S) - 1)]
            LOG.error("mosquitto ended with %d, starting it again in %.1f s", code, pause_s)
            if self._stopping.wait(pause_s):
                return
            deaths, started_ns = deaths + 1, self._clock.now_ns()
            self.restarts += 1
            try:
                self._launch()
            except OSError as error:  # no memory or no descriptor left just now: tried again with the next back-off
                LOG.error("mosquitto cannot be started: %s", error)
