"""The device's side of a rollout: looks into the repository, and takes what it is to run through the phases.

edge.change decides; here it is done, in small steps beside the running pipeline. What takes long is an errand.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from edge.change import (
    ENDED,
    Action,
    Broken,
    Change,
    Choice,
    Done,
    Outcome,
    Running,
    Stale,
    Waits,
    advance,
    plan,
    restarted,
    still_wanted,
)
from edge.changeover import Changeover
from edge.declined import Declined
from edge.encoder import Encoder
from edge.ensemble import Ensemble
from edge.errand import Errand
from edge.hours import Hours, minute_of
from edge.progress import Progress, Since
from edge.slots import Slot
from edge.trials import Trials
from edge.updater import Seen, Updater
from lineside.clock import NS, Clock
from lineside.errors import LinesideError, ReleaseError
from lineside.messages import Command, Installed
from lineside.targets import Terms

log = logging.getLogger(__name__)
PASSING = ("unreachable", "storage", "expired", "clock")  # checks whose refusal may be over with the next attempt
AGAIN_S = 5.0
ORDINARY = Terms()
FAILURES = (LinesideError, OSError)
Ended = tuple[Command, str]  # with the reason why it failed, empty where it was done


class Rollout:
    """Owns which change a device is in. All methods are called by one thread; none waits for the network.

    `terms` are those of what all devices run, where no rollout says otherwise. `begin` starts an errand.
    """

    def __init__(
        self,
        changeover: Changeover,
        updater: Updater | None,
        clock: Clock,
        terms: Terms = ORDINARY,
        begin: Callable[[str, Callable[[], Any]], Errand[Any]] = Errand,
    ) -> None:
        self._changeover, self._updater, self._clock, self._terms, self._begin = (
            changeover,
            updater,
            clock,
            terms,
            begin,
        )
        self._state, self._settings = changeover.state_dir, changeover.config.repository
        self._hours = Hours.parse(self._settings.window)
        self._progress = Progress()
        self._declined = Declined(self._state)
        self._trials = Trials(changeover)
        self._errand: Errand[Any] | None = None
        self._then: Callable[[Errand[Any]], None] = lambda _: None
        self._look_ns = 0  # when to look again
        self._try_ns = 0  # when to try an errand of the phase again
        self._asking: list[Command] = []  # who wait for the next look
        self._ended: list[Ended] = []
        self._slots: dict[str, Slot] = {}
        self._encoders: dict[str, Encoder] = {}
        self._proven: Ensemble | None = None
        self._turn = 0  # of the changeover, when that was proven
        self.problems: dict[str, str] = {}
        self.installed: Mapping[str, Installed] = {}

    # ---- what others ask

    def resume(self) -> None:
        """Go on from what was in progress when the agent ended: called once, before encoders are loaded.

        Slots that a power cut left between two switches are switched to where they were going. Where a file of the set
        is gone from the disk, all of it begins again.
        """
        self._progress = Progress.load(self._state)
        if (change := self._progress.change) is None:
            return
        change, _ = restarted(change, self._clock.now_ns())
        slots = self._changeover.slots
        if change.phase == "probation" and not all(slots.holds(m, one.sha256) for m, one in change.choices.items()):
            change = msgspec.structs.replace(change, phase="waiting")
        self._enter(change)
        for modality, choice in change.choices.items():
            current = slots.current(modality)
            new = current is not None and current.sha256 == choice.sha256
            if change.phase == "probation" and not new:
                slots.switch(modality)
            elif change.phase in ("waiting", "failed") and new and slots.previous(modality) is not None:
                slots.rollback(modality)
            if change.phase == "failed":
                self._reject(choice)
        if change.phase in ENDED:
            self._finish(change)

    def started(self) -> None:
        """Encoders are loaded: watch those in probation, tell what is installed."""
        self._tell()
        change = self._progress.change
        if change is not None and change.phase == "probation":
            self._trials.probation(change)

    def look(self) -> None:
        """Look into the repository with the next step."""
        self._look_ns = 0

    def ask(self, command: Command) -> None:
        """Look at once on behalf of a command; it ends when its modality runs what it is to run, or that failed."""
        self._asking.append(command)
        self.look()

    def cancel(self, modality: str) -> None:
        """Give up the change that a modality is in. Raises ReleaseError (check `rollout`) when it is in none."""
        change = self._progress.change
        if change is None or modality not in change.choices:
            raise ReleaseError("rollout", modality, "no change is in progress", "see `lineside deploy status`")
        self._advance(Broken("cancelled by a person", self._trials.measured))

    def rollback(self, modality: str) -> None:
        """Go back to the encoder in the other slot, without any network, and decline the one that was in use.

        During a change of this modality that is what is given up. Raises LinesideError when there is nothing to go to.
        """
        change = self._progress.change
        if change is not None and modality in change.choices:
            probation = change.phase == "probation"
            self._advance(Broken("rolled back by a person", self._trials.measured))
            if probation:
                return
        health, ended = self._changeover.health(), self._progress.ended.get(modality)
        ensemble = self._changeover.before([modality])
        # Before the switch, lest a power cut in between brings it back with the next look.
        self._declined.add({health[modality].sha256: ended.rollout if ended else ""})
        self._changeover.switch(ensemble, [modality])
        self._tell()

    @property
    def told(self) -> str:
        """The change in progress, for a person; empty when there is none."""
        return self._progress.told(self._clock.now_ns())

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way, and nothing due."""
        busy = self._errand is not None or self._progress.change is not None or bool(self._asking)
        due = self._updater is not None and self._clock.now_ns() >= self._look_ns
        return not (busy or due or self._changeover.unmeasured or self._changeover.unready)

    def ended(self) -> list[Ended]:
        """The commands that have come to their end since the last call."""
        ended, self._ended = self._ended, []
        return ended

    # ---- step by step

    def step(self) -> None:
        """Do what is due, and return soon."""
        if self._errand is not None and self._errand.done:
            errand, self._errand = self._errand, None
            self._then(errand)
        if self._updater is not None and self._errand is None and self._clock.now_ns() >= self._look_ns:
            self._look_ns = self._clock.now_ns() + round(self._settings.poll_s * NS)
            modalities, precision = self._changeover.modalities, self._settings.precision
            look, asking, self._asking = self._updater.look, self._asking, []  # who asks from now on wants a later look
            self._send("look", lambda: look(modalities, precision), lambda errand: self._looked(errand, asking))
        if (change := self._progress.change) is not None:
            self._advance(self._outcome(change))
        elif self._errand is None:
            self._idle()

    def _send(self, name: str, work: Callable[[], Any], then: Callable[[Errand[Any]], None]) -> None:
        self._errand, self._then = self._begin(name, work), then

    def _idle(self) -> None:
        """What is kept ready while nothing else is to be done."""
        if self._changeover.unmeasured:
            self._send("measure", self._changeover.measure, lambda errand: errand.result())
        elif unready := self._changeover.unready:
            self._send("get ready", lambda: self._changeover.get_ready(unready[0]), lambda errand: errand.result())

    # ---- looking

    def _looked(self, errand: Errand[Seen], asking: list[Command]) -> None:
        try:
            seen = errand.result()
        except FAILURES as error:
            self.problems["repository"] = str(error)
            self._ended += [(command, str(error)) for command in asking]
            return
        self.problems.pop("repository", None)
        declined = self._declined.known
        for modality, choice in seen.choices.items():
            if choice.sha256 not in declined:
                self.problems.pop(modality, None)
        self.problems |= {modality: str(refused) for modality, refused in seen.refused.items()}
        choices = {
            m: c if c.rollout else msgspec.structs.replace(c, terms=self._terms) for m, c in seen.choices.items()
        }
        self._follow(choices, asking)
        self._answer(asking, choices)

    def _follow(self, choices: Mapping[str, Choice], asking: list[Command]) -> None:
        """Go where the repository wants this device."""
        if (change := self._progress.change) is not None:
            change, cancelled = still_wanted(change, choices)
            self._enter(change)
            if not cancelled:
                return
            self._advance(Broken(cancelled, self._trials.measured, withdrawn=True))
        running = self._running(choices)
        wanted = plan(choices, running, self._declined.known, {command.args["modality"] for command in asking})
        if wanted.back:
            self._return(wanted.back)
        elif wanted.sets:
            self._enter(Change(choices=wanted.sets[0], since_ns=self._clock.now_ns()))
            self._tell()

    def _return(self, modalities: Sequence[str]) -> None:
        """Go to what all devices run and what ran here before, at once."""
        try:
            self._changeover.back(modalities)
        except FAILURES as error:
            self.problems |= dict.fromkeys(modalities, str(error))
        self._tell()

    def _running(self, choices: Iterable[str]) -> dict[str, Running]:
        slots, found = self._changeover.slots, dict[str, Running]()
        for modality in choices:
            current, previous = slots.current(modality), slots.previous(modality)
            found[modality] = Running(current.sha256 if current else "", previous.sha256 if previous else "")
        return found

    def _answer(self, asking: list[Command], choices: Mapping[str, Choice]) -> None:
        """Who asked waits for the change that he asked for, or hears at once how it is."""
        change, running = self._progress.change, self._running(choices)
        for command in asking:
            modality = command.args["modality"]
            if change is not None and modality in change.choices:
                change = msgspec.structs.replace(change, commands=[*change.commands, command])
                self._enter(change)
            elif modality in choices and running[modality].sha256 == choices[modality].sha256:
                self._ended.append((command, ""))
            elif modality in self.problems:
                self._ended.append((command, self.problems[modality]))
            elif choices[modality].sha256 in self._declined.known:
                self._ended.append((command, self._why_declined(choices[modality])))
            else:
                self._asking.append(command)  # another change goes first

    def _why_declined(self, choice: Choice) -> str:
        ended = self._progress.ended.get(choice.modality)
        reason = f" ({ended.reason})" if ended and ended.reason else ""
        told = f"{choice.modality}-{choice.version}: was declined here{reason}"
        return f"{told}; roll it out anew, or publish another version"

    # ---- phases

    def _outcome(self, change: Change) -> Outcome:
        """What the phase has come to by now."""
        if change.phase == "waiting":
            return self._ready_to_begin(change)
        if change.phase in ("shadow", "probation"):
            return self._trials.outcome(change, self._clock.now_ns())
        if self._errand is None and self._clock.now_ns() >= self._try_ns:
            work = {"fetching": self._fetch, "building": self._build, "proving": self._prove}[change.phase]
            self._send(change.phase, lambda: work(change), lambda errand: self._worked(change, errand))
        return Waits(change.reason)

    def _ready_to_begin(self, change: Change) -> Outcome:
        if change.paused:
            return Waits("the rollout is paused", held=True)
        if self._hours is not None and not self._hours.cover(minute_of(self._clock.now_ns())):
            return Waits(f"the maintenance window is {self._settings.window}", held=True)
        if self._updater is None:
            return Broken("[repository] url is not set any more", withdrawn=True)
        pipeline = self._changeover.pipeline
        if unsettled := pipeline.unsettled:
            return Waits(unsettled)
        for modality in change.choices:
            sensors = [name for name, kind in pipeline.modalities.items() if kind == modality]
            if all(name in pipeline.out for name in sensors):
                return Waits(f"{', '.join(sensors)}: no sensor of this modality is well")
        return Done()

    def _fetch(self, change: Change) -> dict[str, Slot]:
        assert self._updater is not None  # a change begins with a look
        slots = self._changeover.slots
        for choice in change.choices.values():
            spare = slots.spare(choice.modality)
            if spare is None or spare.sha256 != choice.sha256:
                self._updater.bring(choice)
        return {modality: slot for modality in change.choices if (slot := slots.spare(modality)) is not None}

    def _build(self, _: Change) -> dict[str, Encoder]:
        return {modality: self._changeover.ready(slot) for modality, slot in self._slots.items()}

    def _prove(self, _: Change) -> tuple[int, Ensemble]:
        turn = self._changeover.turn
        return turn, self._changeover.prove(self._encoders)

    def _worked(self, change: Change, errand: Errand[Any]) -> None:
        """Take what an errand brought, if the phase that it was sent in still lasts."""
        now = self._progress.change
        if now is None or (now.phase, now.choices.keys(), now.since_ns) != (
            change.phase,
            change.choices.keys(),
            change.since_ns,
        ):
            return
        try:
            found = errand.result()
        except FAILURES as error:
            if isinstance(error, ReleaseError) and error.check in PASSING:
                self._try_ns = self._clock.now_ns() + round(AGAIN_S * NS)
                self._advance(Waits(str(error)))
            else:
                self._advance(Broken(str(error)))
            return
        if change.phase == "fetching":
            self._slots = found
            self._changeover.tell()
        elif change.phase == "building":
            self._encoders = found
        else:
            self._turn, self._proven = found
            self._encoders = {}
            self._trials.shadow(change, self._proven)
        self._advance(Done())

    # ---- what follows

    def _advance(self, outcome: Outcome) -> None:
        """Let the change go on, and do what that takes."""
        before = self._progress.change
        if before is None:
            return
        stale = before.phase == "shadow" and isinstance(outcome, Done) and self._turn != self._changeover.turn
        change, action = advance(before, Stale() if stale else outcome, self._clock.now_ns())
        if change == before:
            return
        if change.phase not in ("shadow", before.phase):
            self._trials.stop()
        if not self._enter(change) and action == "switch":
            change, action = advance(before, Broken(self.problems["rollout"]), self._clock.now_ns())
            self._enter(change)
        self._act(change, action)
        if change.phase != before.phase:
            log.info("%s is in %s %s", " and ".join(change.choices), change.phase, change.reason)
        if (change.phase, change.reason) != (before.phase, before.reason):
            self._tell()

    def _act(self, change: Change, action: Action) -> None:
        if action == "switch":
            self._switch(change)
        elif action == "back":
            self._back(change)
        if change.phase in ENDED:
            self._finish(change)

    def _switch(self, change: Change) -> None:
        assert self._proven is not None  # it was shadowed
        proven, self._proven = self._proven, None
        try:
            self._changeover.switch(proven, [*change.choices])
        except FAILURES as error:
            failed = msgspec.structs.replace(change, phase="failed", reason=str(error))
            self._enter(failed)
            self._finish(failed)
            return
        self._trials.probation(change)

    def _back(self, change: Change) -> None:
        """Fall back to the old slots, as one; nobody goes to what failed by a rollback."""
        running = self._running(change.choices)
        try:
            self._changeover.back([m for m, choice in change.choices.items() if running[m].sha256 == choice.sha256])
            for choice in change.choices.values():
                self._reject(choice)
            self._changeover.tell()
        except FAILURES as error:
            self.problems["rollout"] = f"fall back: {error}"
            log.error("%s", self.problems["rollout"])

    def _reject(self, choice: Choice) -> None:
        previous = self._changeover.slots.previous(choice.modality)
        if previous is not None and previous.sha256 == choice.sha256:
            self._changeover.slots.reject(choice.modality)

    def _finish(self, change: Change) -> None:
        """The change has come to its end; those who asked for it hear how."""
        self._slots, self._encoders, self._proven = {}, {}, None
        hashes = {choice.sha256: change.rollout for choice in change.choices.values()}
        try:
            if change.phase == "steady":
                self._declined.forget(hashes)
            elif not change.withdrawn:  # else it may be what all devices run one day
                self._declined.add(hashes)
        except OSError as error:
            log.error("what is declined cannot be kept (%s)", error)
        for modality, choice in change.choices.items():
            if change.phase == "failed":
                self.problems[modality] = f"{modality}-{choice.version}: {change.reason}; the encoder before stays"
            else:
                self.problems.pop(modality, None)
        self._ended += [(command, change.reason) for command in change.commands]
        ended = msgspec.structs.replace(change, commands=[])
        self._progress = msgspec.structs.replace(
            self._progress, change=None, ended=self._progress.ended | dict.fromkeys(change.choices, ended)
        )
        self._save()
        self.look()

    def _enter(self, change: Change) -> bool:
        """Take this as the change in progress; whether it could be kept, where it has to be."""
        before = self._progress.change
        self._progress = msgspec.structs.replace(self._progress, change=change)
        # why it waits, and since when the plant holds it, need not be kept
        same = before and msgspec.structs.replace(change, reason=before.reason, since_ns=before.since_ns) == before
        return True if same else self._save()

    def _save(self) -> bool:
        try:
            self._progress.save(self._state)
        except OSError as error:
            self.problems["rollout"] = f"rollout: its progress cannot be kept ({error}); free the disk of state_dir"
            return False
        self.problems.pop("rollout", None)
        return True

    def _tell(self) -> None:
        """What is installed, by now."""
        now_ns, health, since = self._clock.now_ns(), self._changeover.health(), dict(self._progress.since)
        for modality, encoder in health.items():
            if modality not in since or since[modality].sha256 != encoder.sha256:
                since[modality] = Since(encoder.sha256, now_ns)
        if since != self._progress.since:
            self._progress = msgspec.structs.replace(self._progress, since=since)
            self._save()
        self.installed = {modality: self._installed(modality) for modality in health}

    def _installed(self, modality: str) -> Installed:
        encoder = self._changeover.ensemble.encoders[modality]
        now, previous = self._changeover.held[modality]
        told = Installed(
            version=encoder.card.version,
            sha256=now.sha256 if now else "",
            precision=encoder.card.precision,
            since_ns=self._progress.since[modality].since_ns,
            previous_version=previous.version if previous else 0,
            previous_sha256=previous.sha256 if previous else "",
        )
        change = self._progress.change
        if change is None or modality not in change.choices:
            change = self._progress.ended.get(modality)
        if change is None:
            return told
        own = {"rollout": change.rollout, "candidate": change.choices[modality].version, "phase": change.phase}
        return msgspec.structs.replace(told, **own, reason=change.reason, measured=change.measured)
