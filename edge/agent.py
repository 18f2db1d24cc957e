"""The agent: sensors in, messages out; commands and releases beside it."""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import msgspec

from edge import contract
from edge.capture import Capture
from edge.changeover import Changeover
from edge.config import DeviceConfig, SensorSettings
from edge.faults import Injector
from edge.outbox import Outbox
from edge.pipeline import Pipeline
from edge.sensors.base import Sensor
from edge.sensors.table import open_sensor
from edge.slots import Slots
from edge.updater import Updater
from edge.uplink import Uplink, finished
from lineside import __version__
from lineside.clock import NS, Clock
from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.messages import Command, Contribution, Health, Message, SensorHealth, StationState
from lineside.windows import Samples

log = logging.getLogger(__name__)

T = TypeVar("T")
QUEUE_RUNS = 400  # runs of samples between capture and judgement: some 20 s of two sensors
HEALTH_S = 5.0
REMEMBER_S = 60.0
RETRY_S = 5.0
FAILURES = (LinesideError, OSError)  # the second where the disk of state_dir is full, gone or read-only


class Agent:
    """One device. `run` blocks until `stop` is set."""

    def __init__(self, config: DeviceConfig, base: Path, clock: Clock) -> None:
        self._config, self._base, self._clock = config, base, clock
        self._start_ns = clock.now_ns()
        self._health_due_ns = self._remember_due_ns = 0
        self._state, self._poll_ns = "starting", 0
        self._problems: dict[str, str] = {}  # by what was attempted; empty while all is well
        state = base / config.device.state_dir
        self._remembered = state / "monitor.npz"
        self._samples: queue.Queue[Samples] = queue.Queue(QUEUE_RUNS)
        self._commands: queue.Queue[Command] = queue.Queue(32)
        self._pipeline = Pipeline(config)
        self._injector = Injector()
        self._outbox = Outbox(state / "outbox.db", config.device.id, round(config.outbox.max_mb * 1e6), clock)
        self._uplink = Uplink(config, base, self._outbox, clock, self._take_command, self._take_state)
        slots = Slots(state, clock)
        updater = Updater(config.repository, base, state, slots) if config.repository.url else None
        self._changeover = Changeover(config, base, self._pipeline, slots, updater)
        self._captures = {sensor.name: self._capture(sensor) for sensor in config.sensors}

    def run(self, stop: threading.Event) -> None:
        """Capture, judge and report until `stop` is set; then leave in order."""
        chores = threading.Thread(target=self._chores, args=(stop,), name="chores", daemon=True)
        self._recall()
        self._uplink.start()
        for capture in self._captures.values():
            capture.start()
        chores.start()
        try:
            while not stop.is_set():
                self._step()
        finally:
            stop.set()
            for capture in self._captures.values():
                capture.stop()
            chores.join(timeout=10)
            self._state = "stopped"
            self._remember()
            self._store([self._health()])
            self._uplink.stop()
            self._outbox.close()

    def _capture(self, sensor: SensorSettings) -> Capture:
        def make() -> Sensor:
            return open_sensor(sensor, self._clock, self._start_ns, self._base)

        return Capture(sensor.name, make, self._samples)

    def _step(self) -> None:
        """One run of samples, or a quarter of a second without any."""
        messages: list[Message] = []
        try:
            messages += self._pipeline.push(self._injector.apply(self._samples.get(timeout=0.25)))
        except queue.Empty:  # only then: behind a backlog no sensor is away
            messages += self._pipeline.tick(self._clock.now_ns())
        now = self._clock.now_ns()
        if now >= self._health_due_ns:
            self._health_due_ns = now + round(HEALTH_S * NS)
            messages.append(self._health())
        if now >= self._remember_due_ns:
            self._remember_due_ns = now + round(REMEMBER_S * NS)
            self._remember()
        self._store(messages)

    def _remember(self) -> None:
        """Keep what a restart would make the pipeline forget."""
        try:
            write_atomic(self._remembered, self._pipeline.remember(), mode=0o600)
            self._problems.pop("monitor", None)
        except OSError as error:
            self._tell("monitor", f"monitor: cannot be kept ({error}); free the disk of state_dir")

    def _recall(self) -> None:
        try:
            self._pipeline.recall(self._remembered.read_bytes())
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.warning("%s: %s; drift is watched for from the beginning", self._remembered, error)

    def _store(self, messages: list[Message]) -> None:
        """A full disk must not stop the judging: what cannot be stored is told in health and tried no more."""
        if not messages:
            return
        try:
            self._outbox.put(messages)
            self._problems.pop("outbox", None)
        except sqlite3.Error as error:
            self._tell("outbox", f"outbox: cannot store ({error}); free the disk of state_dir")
        self._uplink.wake()

    def _chores(self, stop: threading.Event) -> None:
        """What may take long, in its own thread: first encoders, commands, news from the repository."""
        while not stop.is_set() and not self._begin():
            stop.wait(RETRY_S)
        self._poll_ns = self._clock.now_ns() + round(self._config.repository.poll_s * NS)
        while not stop.is_set():
            try:
                self._chore()
            except Exception as error:
                # the top of a thread: commands and updates must go on whatever one of them ran into
                log.exception("a chore failed")
                self._problems["agent"] = f"agent: {type(error).__name__} ({error}); see the log and report it"

    def _chore(self) -> None:
        with contextlib.suppress(queue.Empty):
            self._execute(self._commands.get(timeout=0.25))
        if self._attempt("commissioning", self._changeover.finish_commissioning):
            self._state = "watching"
        if self._config.repository.url and self._clock.now_ns() >= self._poll_ns:
            self._poll_ns = self._clock.now_ns() + round(self._config.repository.poll_s * NS)
            for modality in self._changeover.modalities:
                self._attempt(modality, functools.partial(self._changeover.update, modality, asked=False))

    def _begin(self) -> bool:
        self._state = "waiting for encoders"
        if not self._attempt("start", self._started):
            return False
        self._state = "commissioning" if self._pipeline.commissioning is not None else "watching"
        self._health_due_ns = 0
        return True

    def _started(self) -> bool:
        self._changeover.begin()
        return True

    def _attempt(self, what: str, work: Callable[[], T]) -> T | None:
        """Do it; an error of ours is told in log and health, and leaves the last good state running.

        What gives nothing was not due: a problem of it stands until it is done.
        """
        try:
            done = work()
        except FAILURES as error:
            self._tell(what, str(error))
            return None
        if done:
            self._problems.pop(what, None)
        return done

    def _tell(self, what: str, problem: str) -> None:
        if self._problems.get(what) != problem:
            log.error("%s", problem)
        self._problems[what] = problem

    def _take_command(self, command: Command) -> None:
        try:
            self._commands.put_nowait(command)
        except queue.Full:
            self._uplink.report(finished(command, "too many commands at once; send it again later"))

    def _take_state(self, told: StationState) -> None:
        self._pipeline.station.hear(told.state, told.since_ns or self._clock.now_ns())

    def _execute(self, command: Command) -> None:
        self._uplink.report(msgspec.structs.replace(command, status="executing"))
        reason = ""
        try:
            self._commanded(command)
        except FAILURES as error:
            reason = str(error)
            log.error("command %s: %s", command.op, reason)
        self._health_due_ns = 0
        self._uplink.report(finished(command, reason))

    def _commanded(self, command: Command) -> None:
        modality = command.args.get("modality", "")
        if command.op in {"update", "rollback"} and modality in self._changeover.modalities:
            change = self._changeover.update if command.op == "update" else self._changeover.rollback
            change(modality)
            self._problems.pop(modality, None)
        elif command.op == "commission":
            self._changeover.commission_again(keep=command.args.get("keep") == "yes")
            self._state = "commissioning"
        elif command.op == "fault" and self._config.device.allow_fault_injection:
            self._inject(command)
        else:
            asked = f"{command.op} {command.args}"
            mend = "known are update and rollback with a modality of the device, commission, and fault where allowed"
            raise LinesideError(self._config.device.id, f"does not do {asked}", mend)

    def _inject(self, command: Command) -> None:
        try:
            seconds = min(max(float(command.args.get("seconds", "20")), 0.0), 600.0)
            self._injector.start(command.args.get("kind", ""), self._clock.now_ns() + round(seconds * NS))
        except ValueError as error:
            raise LinesideError("fault", str(error), "choose another kind or number of seconds") from error

    def _health(self) -> Health:
        counters = self._pipeline.counters
        monitor, said = self._pipeline.monitor, self._pipeline.contributed
        problems = [
            *self._problems.values(),
            *(c.problem for c in self._captures.values()),
            *self._pipeline.problems,
        ]
        return Health(
            device=self._config.device.id,
            station=self._config.device.station,
            agent=__version__,
            time_ns=self._clock.now_ns(),
            uptime_s=(self._clock.now_ns() - self._start_ns) / NS,
            state=self._state,
            sensors={name: self._sensor_health(name) for name in self._captures},
            encoders=self._changeover.health(),
            windows=sum(counters.windows.values()),
            embedded=counters.embedded,
            moments=counters.moments,
            scores=counters.scores,
            drift=monitor.told if monitor else "",
            contributions={name: Contribution(**asdict(one)) for name, one in said.sensors.items()},
            effective_sensors=said.effective if said.sensors else None,
            sensitivity=contract.summary(measured) if (measured := self._changeover.contract) else [],
            outbox_messages=self._outbox.messages,
            outbox_bytes=self._outbox.bytes,
            dropped_messages=self._outbox.dropped,
            problems=[problem for problem in problems if problem],
        )

    def _sensor_health(self, name: str) -> SensorHealth:
        capture, counters = self._captures[name], self._pipeline.counters
        return SensorHealth(
            modality=self._pipeline.modalities[name],
            windows=counters.windows.get(name, 0),
            dropped_samples=capture.dropped,
            flags=sorted(counters.flags.get(name, frozenset())),
            problem=capture.problem,
        )
