"""A whole plant of devices takes a version through three rings, on one machine; a second version is stopped.

`python -m bench.rollout --devices 1000` makes a plant with a real signed repository, starts `lineside hub run` (real
broker, store and HTTP), lets devices come (bench.fleet: real TUF and MQTT clients, no encoder is run), and calls
`lineside deploy` as a person would. Some devices are offline meanwhile and catch up; of the second version a part of
the devices says that it failed, and the rollout aborts itself. Prints a table in Markdown; exit code 1 when something
does not hold.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

import msgspec

from bench import made_up_encoder
from deploy import begin
from deploy.conductor import see
from lineside import config
from lineside.cli import guarded
from lineside.clock import NS, Clock, SystemClock
from lineside.errors import GateError, LinesideError
from lineside.operator import Operator
from lineside.pins import Pins
from lineside.plant import PlantConfig
from lineside.rollout_progress import Seen
from lineside.rollout_record import Record

GOOD, BAD = 2, 3  # versions
EACH = 250  # devices a process: paho waits with select(2), which knows 1024 files, and each client has three
READY_S, END_S = 600.0, 60.0
RINGS = """
[rollout]
canary = [{canary}]
percents = [10, 100]
approve = false
soak_min = 0
away = 1.0
failures = {failures}

[rollout.terms]
shadow_s = {phase_s}
probation_s = {phase_s}
"""


@dataclass(frozen=True)
class Asked:
    """What is simulated."""

    devices: int
    away: int
    failing: int
    canary: int
    kilobytes: int
    phase_s: float


@dataclass(frozen=True)
class Part:
    """One line of the table; requests and megabytes are of HTTP, None where they are in another line."""

    what: str
    devices: int
    seconds: float
    requests: int | None = None
    megabytes: float | None = None


class Fleets:
    """The processes that devices live in."""

    def __init__(self, folder: Path, count: int, away: Sequence[str], failing: Sequence[str]) -> None:
        words = [sys.executable, "-m", "bench.fleet", str(folder), "--count", str(EACH), "--fails-at", str(BAD)]
        told = ["--away", *away, "--failing", *failing]
        self._running = [
            subprocess.Popen([*words, "--first", str(first), *told], stdin=PIPE, stdout=PIPE, text=True)
            for first in range(0, count, EACH)
        ]

    def say(self, words: str = "count") -> dict[str, int]:
        """Give all of them a line, and add up what they counted so far."""
        found: dict[str, int] = {}
        for process in self._running:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{words}\n")
            process.stdin.flush()
            for name, value in json.loads(process.stdout.readline()).items():
                found[name] = found.get(name, 0) + value
        return found

    def stop(self) -> None:
        """End them."""
        for process in self._running:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._running:
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()


class Simulation:
    """One plant, its hub and its devices, in one folder."""

    def __init__(self, folder: Path, asked: Asked, clock: Clock) -> None:
        self._folder, self._asked, self._clock = folder, asked, clock
        names = [f"edge-{number:04}" for number in range(asked.devices)]
        self._away = names[asked.devices - asked.away :]
        self._failing = names[asked.canary : asked.canary + asked.failing]
        self._plant = _plant(folder, names, asked, clock)
        self.parts: list[Part] = []
        self.notes: list[str] = []

    def run(self) -> None:
        """Everything in order; raises LinesideError where it does not hold."""
        for version in (1, GOOD, BAD):
            made_up_encoder.write(self._folder, "camera", version, self._asked.kilobytes)
        self._lineside("deploy", "publish", str(self._folder / "camera-1.onnx"))
        with ExitStack() as stack:
            stack.enter_context(self._hub())
            self._fleets = Fleets(self._folder, self._asked.devices, self._away, self._failing)
            stack.callback(self._fleets.stop)
            there = self._asked.devices - self._asked.away
            with self._timed("first look and first version", there):
                self._wait(1, there)
            self._roll_out(there)
            with self._timed("offline devices come and catch up", self._asked.away):
                self._fleets.say("come " + " ".join(self._away))
                self._wait(GOOD, self._asked.devices)
            self._stop_the_bad_one()
            self._note_counts()

    def _roll_out(self, there: int) -> None:
        """A good version, ring by ring, to the devices that are there."""
        self._lineside("deploy", "publish", str(self._folder / f"camera-{GOOD}.onnx"))
        at = len(self.parts)
        with self._timed("all rings", there):
            self._lineside("deploy", "rollout", "start", "--modality", "camera", "--no-wait")
            told = self._lineside("deploy", "rollout", "watch")
        record = msgspec.convert(told["rollout"], Record)
        if record.state != "finished":
            raise LinesideError("rollout", f"{record.state} {record.reason}", "see the table")
        opened = [event.time_ns for event in record.events if " opened: " in event.text] + [record.since_ns]
        for number in range(len(record.rings)):
            fresh = msgspec.structs.replace(record, ring=number).fresh(self._plant.devices)
            seconds = (opened[number + 1] - opened[number]) / NS
            self.parts.insert(at + number, Part(f"ring {number + 1}", len(fresh), seconds))
        away = sum(row["progress"] == "away" for row in told["devices"])
        self.notes.append(f"{away} devices were offline at the end of the rollout")
        self._wait(GOOD, there)

    def _stop_the_bad_one(self) -> None:
        """Its failing devices are more than the plant allows, so that all go back by themselves."""
        self._lineside("deploy", "publish", str(self._folder / f"camera-{BAD}.onnx"))
        with self._timed("a version that fails on some: aborted, all back", self._asked.devices):
            words = ("deploy", "rollout", "start", "--modality", "camera", "--all")
            told = self._lineside(*words, expected=GateError.exit_code)
            self._wait(GOOD, self._asked.devices)
        reason = told["rollout"]["reason"]
        if told["rollout"]["state"] != "aborted" or "devices failed" not in reason:
            raise LinesideError("the bad version", reason, "it had to be aborted")
        self.notes.append(f"the bad version was aborted: {reason}")

    def _note_counts(self) -> None:
        counts, stored = self._fleets.say(), self._api("/api/status")["counts"]["manifests"]
        self.notes.append(
            f"{counts['looks']} looks, {counts['errors']} tried again, {stored} manifests in the hub's store"
        )

    def _wait(self, version: int, devices: int) -> None:
        """Until so many devices say, signed, that they run that version for good."""
        with Operator(self._plant.connection("operator"), self._folder, self._plant.site, self._clock) as operator:
            pins = Pins(self._folder / self._plant.secrets, keeps=True)
            end_ns, have = self._clock.now_ns() + round(READY_S * NS), 0
            while have < devices:
                if self._clock.now_ns() > end_ns:
                    raise LinesideError(
                        f"version {version}", f"{have} of {devices} have it", "see hub.log in the folder"
                    )
                have = sum(_runs(see(pins, report), version) for report in operator.survey(0.2).values())

    def _lineside(self, *words: str, expected: int = 0) -> Any:
        config_ = ["--config", str(self._folder / "plant.toml"), "--json"]
        done = subprocess.run([sys.executable, "-m", "lineside", *words, *config_], stdout=PIPE, check=False)
        if done.returncode != expected:
            raise LinesideError(" ".join(words), f"ended with {done.returncode}", "see what it said above")
        return json.loads(done.stdout)

    @contextmanager
    def _hub(self) -> Iterator[None]:
        words = [sys.executable, "-m", "lineside", "hub", "run", "--config", str(self._folder / "plant.toml"), "--json"]
        with (self._folder / "hub.log").open("wb") as log, subprocess.Popen(words, stdout=PIPE, stderr=log) as hub:
            assert hub.stdout is not None
            try:
                if not hub.stdout.readline():
                    raise LinesideError("hub", "does not start", f"see {log.name}")
                yield
            finally:
                hub.terminate()

    def _api(self, path: str) -> Any:
        with urllib.request.urlopen(
            f"http://{self._plant.hub.host}:{self._plant.hub.port}{path}", timeout=30
        ) as answer:
            return json.load(answer)

    @contextmanager
    def _timed(self, what: str, devices: int) -> Iterator[None]:
        began, before = self._clock.now_ns(), self._fleets.say()
        yield
        seconds, after = (self._clock.now_ns() - began) / NS, self._fleets.say()
        requests, read = (after[name] - before[name] for name in ("requests", "bytes"))
        self.parts.append(Part(what, devices, seconds, requests, read / 1e6))


def table(parts: Sequence[Part]) -> str:
    """The parts in Markdown."""
    lines = ["| part | devices | seconds | requests | MB |", "|---|---:|---:|---:|---:|"]
    for one in parts:
        requests = "" if one.requests is None else f"{one.requests:,}"
        megabytes = "" if one.megabytes is None else f"{one.megabytes:,.1f}"
        lines.append(f"| {one.what} | {one.devices:,} | {one.seconds:.1f} | {requests} | {megabytes} |")
    return "\n".join(lines)


def _runs(seen: Seen, version: int) -> bool:
    return any((one.version, one.phase) in ((version, "steady"), (version, "failed")) for one in seen.encoders.values())


def _plant(folder: Path, names: Sequence[str], asked: Asked, clock: Clock) -> PlantConfig:
    """A plant with keys, passwords and an empty repository."""
    ports = [free_port(), free_port()]
    begin.begin(folder, begin.Asked("line1", tuple(names), ("camera",), ports[0], ports[1], False), clock)
    canary = ", ".join(f'"{name}"' for name in names[: asked.canary])
    failures = round(asked.failing / asked.devices / 2, 3)
    with (folder / "plant.toml").open("a") as file:
        file.write(RINGS.format(canary=canary, failures=failures, phase_s=asked.phase_s))
    return config.load(folder / "plant.toml", PlantConfig)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    """Simulate, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--away", type=int, help="devices that are offline during the rollout; default: one in twenty")
    parser.add_argument("--failing", type=int, help="devices that the second version fails on; default: one in twenty")
    parser.add_argument("--canary", type=int, default=3)
    parser.add_argument("--encoder-kb", type=int, default=436, help="size of an encoder; default: our camera encoder's")
    parser.add_argument("--phase-s", type=float, default=2.0, help="how long shadow and probation take, each")
    given = parser.parse_args()
    part = max(1, given.devices // 20)
    away, failing = (part if one is None else one for one in (given.away, given.failing))
    asked = Asked(given.devices, away, failing, given.canary, given.encoder_kb, given.phase_s)
    with tempfile.TemporaryDirectory(prefix="lineside-rollout-") as folder:
        simulation = Simulation(Path(folder), asked, SystemClock())
        try:
            simulation.run()
        finally:
            print("\n".join([table(simulation.parts), "", *(f"- {note}" for note in simulation.notes)]))


if __name__ == "__main__":
    guarded(main)
