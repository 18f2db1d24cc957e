"""The agent: sensors in, messages out; commands and releases beside it."""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import msgspec

from edge import contract, freshness
from edge.capture import Capture
from edge.changeover import Changeover
from edge.config import DeviceConfig, MetricsSettings, SensorSettings
from edge.delivery import Delivery
from edge.evidence import Evidence
from edge.faults import Injector
from edge.fetcher import Fetcher
from edge.hatch import Hatch
from edge.manifest import Identity
from edge.metrics import MetricsServer, Pages
from edge.outbox import Outbox
from edge.pipeline import Pipeline
from edge.requests import finished
from edge.rollout import Rollout
from edge.sensors.base import Sensor
from edge.sensors.table import open_sensor
from edge.slots import Slots
from edge.updater import Updater
from edge.uplink import Uplink
from edge.watchdog import Signs
from lineside import __version__
from lineside.clock import NS, Clock, wall_error_ns
from lineside.errors import LinesideError, ReleaseError
from lineside.files import write_atomic
from lineside.messages import Alarm, Command, Contribution, Health, Installed, Message, SensorHealth, StationState
from lineside.windows import Samples

log = logging.getLogger(__name__)

T = TypeVar("T")
QUEUE_RUNS = 400  # runs of samples between capture and judgement: some 20 s of two sensors
HEALTH_S = 5.0
REMEMBER_S = 60.0
RETRY_S = 5.0
WALL_S = 2.0  # by which the wall clock may differ from ours before somebody is told
LONG_S = 1800.0  # what loading, proving and learning may take: an engine was seen to be built for ten minutes
OPENING_S = 90.0  # what a sensor may take to open and fail, with the longest back-off until it is opened anew
FAILURES = (LinesideError, OSError)  # the second where the disk of state_dir is full, gone or read-only


class Agent:
    """One device. `run` blocks until `stop` is set.

    With `socket` it needs no network: a process of `lineside edge uplink` comes to that path for what is to be sent.
    """

    def __init__(self, config: DeviceConfig, base: Path, clock: Clock, socket: Path | None = None) -> None:
        self._config, self._base, self._clock = config, base, clock
        self._start_ns = clock.now_ns()
        self._health_due_ns = self._remember_due_ns = 0
        self._state = "starting"
        self._problems: dict[str, str] = {}  # by what was attempted; empty while all is well
        self._rounds = dict.fromkeys(("judge", "chores", *(_capturing(sensor.name) for sensor in config.sensors)), 0)
        self._patience_ns = dict.fromkeys(self._rounds, 0)  # until when a stage need not go round
        state = base / config.device.state_dir
        self._remembered = state / "monitor.npz"
        self._samples: queue.Queue[Samples] = queue.Queue(QUEUE_RUNS)
        self._commands: queue.Queue[Command] = queue.Queue(32)
        self._pipeline = Pipeline(config)
        self._injector = Injector()
        self._evidence = Evidence(config, state, clock)
        self._delivery = Delivery(config, state, clock)
        bounds = config.outbox
        self._outbox = Outbox(state / "outbox.db", config.device.id, round(bounds.max_mb * 1e6), clock, bounds.max_days)
        hears = (self._take_command, self._take_state)
        pages = Pages(self._health, self._pipeline.stages, lambda: not self._uplink.problem)
        self._uplink: Uplink | Hatch = (
            Uplink(config, base, self._outbox, clock, *hears, piece=self._delivery.piece)
            if socket is None
            else Hatch(socket, config.device.id, self._outbox, clock, *hears, pages.answer, self._delivery.piece)
        )
        slots = Slots(state, clock)
        self._metadata = state / "repository"
        partial = self._metadata / "partial"
        fetcher = Fetcher(self._uplink, partial, clock) if isinstance(self._uplink, Hatch) else None
        name = config.device.id
        updater = Updater(config.repository, base, state, slots, fetcher, name) if config.repository.url else None
        self._changeover = Changeover(config, base, self._pipeline, slots, updater)
        self._rollout = Rollout(self._changeover, updater, clock)
        self._resumed = False
        self._identity: Identity | None = None
        self._manifested: Mapping[str, Installed] = {}
        # Beside the network, if it is in another process: there somebody can reach it.
        self._metrics = MetricsServer(config.metrics if socket is None else MetricsSettings(), pages.answer)
        self._captures = {sensor.name: self._capture(sensor) for sensor in config.sensors}

    def run(self, stop: threading.Event) -> None:
        """Capture, judge and report until `stop` is set; then leave in order."""
        chores = threading.Thread(target=self._chores, args=(stop,), name="chores", daemon=True)
        self._recall()
        self._uplink.start()
        self._evidence.start()
        self._metrics.start()
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
            self._evidence.stop()
            self._metrics.stop()
            self._state = "stopped"
            self._remember()
            self._store([self._health()])
            self._uplink.stop()
            self._outbox.close()

    def signs(self) -> Signs:
        """Signs of life, for the watchdog; a sensor that is away is one, as long as it is opened anew."""
        over = {_capturing(name) for name, capture in self._captures.items() if capture.ended}
        rounds = {stage: rounds for stage, rounds in self._rounds.items() if stage not in over}
        now = self._clock.now_ns()
        busy = frozenset(stage for stage, until_ns in self._patience_ns.items() if now < until_ns)
        making = self._changeover.workshop.doing  # within time limits of its own, however many engines there are
        busy |= {"chores"} if making else frozenset()
        doing = [told for told in (self._rollout.told, making) if told]
        status = "; ".join([self._state, *doing, *self._told_problems()])
        if isinstance(self._uplink, Uplink):
            rounds["uplink"] = self._uplink.rounds
        return Signs(rounds, busy, status)

    def _told_problems(self) -> list[str]:
        told = [
            *self._problems.values(),
            self._changeover.problem,
            *self._rollout.problems.values(),
            self._metrics.problem,
            self._outbox.problem,
            self._uplink.problem,
            *(capture.problem for capture in self._captures.values()),
            *self._pipeline.problems,
            self._wall_problem(),
            freshness.problem(self._metadata, self._changeover.modalities, self._clock.now_ns()),
            self._evidence.problem,
        ]
        return [problem for problem in told if problem]

    def _capture(self, sensor: SensorSettings) -> Capture:
        stage = _capturing(sensor.name)

        def make() -> Sensor:
            self._rounds[stage] += 1
            self._patience_ns[stage] = self._clock.now_ns() + round(OPENING_S * NS)
            isolated = self._config.device.isolated
            return open_sensor(sensor, self._clock, self._start_ns, self._base, isolated=isolated)

        return Capture(sensor.name, make, self._samples)

    def _step(self) -> None:
        """One run of samples, or a quarter of a second without any."""
        messages: list[Message] = []
        self._rounds["judge"] += 1
        try:
            samples = self._injector.apply(self._samples.get(timeout=0.25))
            self._rounds[_capturing(samples.sensor)] += 1
            self._evidence.take(samples)
            messages += self._pipeline.push(samples)
        except queue.Empty:  # only then: behind a backlog no sensor is away
            self._evidence.tick(self._clock.now_ns())
            messages += self._pipeline.tick(self._clock.now_ns())
        messages = self._evidence.hear(messages)
        now = self._clock.now_ns()
        if now >= self._health_due_ns:
            self._health_due_ns = now + round(HEALTH_S * NS)
            messages.append(self._health())
        self._store([*messages, *self._news()])
        # After they are stored: an alarm that was remembered as raised and never stored would never be raised again.
        # One that stands raised must be cleared by whoever comes after us.
        if now >= self._remember_due_ns or any(isinstance(message, Alarm) for message in messages):
            self._remember_due_ns = now + round(REMEMBER_S * NS)
            self._remember()

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
            with self._pipeline.stages["store"]:
                self._outbox.put(messages)
            self._problems.pop("outbox", None)
        except sqlite3.Error as error:
            self._tell("outbox", f"outbox: cannot store ({error}); free the disk of state_dir")
        self._uplink.wake()

    def _chores(self, stop: threading.Event) -> None:
        """What may take long, in its own thread: first encoders, commands, news from the repository."""
        while not stop.is_set() and not self._begin():
            self._rounds["chores"] += 1
            stop.wait(RETRY_S)
        while not stop.is_set():
            self._rounds["chores"] += 1
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
        self._attempt("changes", self._changed)

    def _changed(self) -> bool:
        """One step of what changes encoders; who asked for it hears when it has ended."""
        self._rollout.step()
        for command, reason in self._rollout.ended():
            self._report(command, reason)
        return True

    def _begin(self) -> bool:
        self._state = "waiting for encoders"
        if not self._attempt("start", self._started):
            return False
        self._state = "commissioning" if self._pipeline.commissioning is not None else "watching"
        self._health_due_ns = 0
        return True

    def _started(self) -> bool:
        if not self._resumed:
            self._resumed = True
            self._rollout.resume()
        self._changeover.begin()
        self._rollout.started()
        return True

    def _attempt(self, what: str, work: Callable[[], T]) -> T | None:
        """Do it; an error of ours is told in log and health, and leaves the last good state running.

        What gives nothing was not due: a problem of it stands until it is done.
        """
        try:
            with self._long():
                done = work()
        except FAILURES as error:
            self._tell(what, str(error))
            return None
        if done:
            self._problems.pop(what, None)
        return done

    @contextlib.contextmanager
    def _long(self) -> Iterator[None]:
        """Work of the chores that is known to take long, and still is bounded."""
        self._patience_ns["chores"] = self._clock.now_ns() + round(LONG_S * NS)
        try:
            yield
        finally:
            self._patience_ns["chores"] = 0

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
        try:
            with self._long():
                self._commanded(command)
        except FAILURES as error:
            self._report(command, str(error))
            return
        if command.op != "update":  # which ends when it is known how the change that it asks for ended
            self._report(command, "")

    def _report(self, command: Command, reason: str) -> None:
        """A command has come to its end, with the reason why it failed."""
        if reason:
            log.error("command %s: %s", command.op, reason)
        self._health_due_ns = 0
        self._uplink.report(finished(command, reason))

    def _commanded(self, command: Command) -> None:
        modality = command.args.get("modality", "")
        if command.op == "update" and modality in self._changeover.modalities:
            self._update(command)
        elif command.op in {"rollback", "cancel"} and modality in self._changeover.modalities:
            self._rollout.rollback(modality) if command.op == "rollback" else self._rollout.cancel(modality)
        elif command.op == "commission":
            self._changeover.commission_again(keep=command.args.get("keep") == "yes")
            self._state = "commissioning"
        elif command.op == "record" and command.args.get("switch") in {"on", "off"}:
            self._evidence.record(command.args["switch"] == "on")
        elif command.op == "evidence" and "recording" in command.args:
            self._delivery.ask(command.args["recording"], command.args.get("offset", "0"))
            self._uplink.wake()
        elif command.op == "fault" and self._config.device.allow_fault_injection:
            self._inject(command)
        else:
            asked = f"{command.op} {command.args}"
            known = (
                "update and rollback with a modality of the device, cancel of either, commission, record with a "
                "switch, evidence with a recording"
            )
            mend = f"known are {known}, and fault where allowed"
            raise LinesideError(self._config.device.id, f"does not do {asked}", mend)

    def _update(self, command: Command) -> None:
        if not self._config.repository.url:
            raise ReleaseError(
                "missing", command.args["modality"], "no repository is configured", "set [repository] url"
            )
        self._rollout.ask(command)

    def _inject(self, command: Command) -> None:
        try:
            seconds = min(max(float(command.args.get("seconds", "20")), 0.0), 600.0)
            self._injector.start(command.args.get("kind", ""), self._clock.now_ns() + round(seconds * NS))
        except ValueError as error:
            raise LinesideError("fault", str(error), "choose another kind or number of seconds") from error

    def _news(self) -> list[Message]:
        """The signed manifest, when what is installed has changed since the last one."""
        if (installed := self._rollout.installed) == self._manifested:
            return []
        self._manifested = installed
        try:
            self._identity = self._identity or Identity.of(self._base / self._config.device.state_dir)
        except FAILURES as error:
            self._tell("manifest", f"what is installed cannot be told: {error}")
            return []
        return [self._identity.manifest(self._config.device, installed, self._clock.now_ns())]

    def _health(self) -> Health:
        counters = self._pipeline.counters
        monitor, said = self._pipeline.monitor, self._pipeline.contributed
        return Health(
            device=self._config.device.id,
            station=self._config.device.station,
            agent=__version__,
            time_ns=self._clock.now_ns(),
            uptime_s=(self._clock.now_ns() - self._start_ns) / NS,
            state=self._state,
            sensors={name: self._sensor_health(name) for name in self._captures},
            encoders=self._changeover.health(),
            making=self._changeover.workshop.doing,
            windows=sum(counters.windows.values()),
            embedded=counters.embedded,
            moments=counters.moments,
            scores=counters.scores,
            drift=monitor.told if monitor else "",
            contributions={name: Contribution(**asdict(one)) for name, one in said.sensors.items()},
            effective_sensors=said.effective if said.sensors else None,
            sensitivity=contract.summary(measured) if (measured := self._changeover.contract) else [],
            degraded=self._degraded(),
            outbox_messages=self._outbox.messages,
            outbox_bytes=self._outbox.bytes,
            recording=self._evidence.recording,
            dropped_messages=sum(self._outbox.dropped.values()),
            dropped=dict(self._outbox.dropped),
            problems=self._told_problems(),
        )

    def _degraded(self) -> str:
        """Which sensors are out of the fusion, and what those that are left can see."""
        out, measured = self._pipeline.out, self._changeover.contract
        if not out:
            return ""
        if len(out) == len(self._captures):
            return f"nothing is watched: {'; '.join(out.values())}"
        seen = contract.left(measured, [*out]) if measured else ""
        return f"without {', '.join(out)}: {seen or 'what is still seen was not measured'} ({'; '.join(out.values())})"

    def _wall_problem(self) -> str:
        """Stamps go on evenly when the wall clock is set; they are then of another time than everybody else's."""
        ahead_s = wall_error_ns(self._clock) / NS
        if abs(ahead_s) < WALL_S:
            return ""
        return (
            f"clock: the wall clock was set by {ahead_s:+.0f} s since the start, stamps are still of the old time; "
            "restart the agent when the line stands"
        )

    def _sensor_health(self, name: str) -> SensorHealth:
        capture, counters = self._captures[name], self._pipeline.counters
        timing = counters.timing.get(name)
        return SensorHealth(
            modality=self._pipeline.modalities[name],
            windows=counters.windows[name],
            dropped_samples=capture.dropped,
            flags=sorted(counters.flags.get(name, frozenset())),
            problem=capture.problem,
            flagged=dict(counters.flagged.get(name, {})),
            restarts=capture.restarts,
            rate_hz=counters.rates_hz.get(name, 0.0),
            offset_ms=timing.offset_ns / 1e6 if timing else None,
            drift_ppm=timing.drift_ppm if timing else None,
        )


def _capturing(sensor: str) -> str:
    """The stage that captures one sensor."""
    return f"capture of {sensor}"
