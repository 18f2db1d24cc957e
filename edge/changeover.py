"""Which encoders the pipeline uses, and changing them between two moments; or leaving all as it was.

What is to be changed, and when, is edge.rollout's.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from edge import contract
from edge.commissioning import Commissioning
from edge.config import DeviceConfig
from edge.contract import Contract
from edge.encoder import Encoder
from edge.ensemble import Ensemble, admit_all
from edge.learned import Learned
from edge.mix import newest
from edge.pipeline import Pipeline
from edge.replay import commission
from edge.slots import Slot, Slots
from edge.updater import Updater
from edge.workshop import Workshop
from lineside.errors import LinesideError, RecordingError, ReleaseError
from lineside.files import write_atomic
from lineside.messages import EncoderHealth
from lineside.recording import Recording

log = logging.getLogger(__name__)


class Held(NamedTuple):
    """What a modality's slots hold: the encoder in use, and what a rollback would go to."""

    current: Slot | None
    previous: Slot | None


@dataclass
class Changeover:
    """Owns which encoders the pipeline uses. Its methods are called by one thread, beside the running pipeline.

    Only `ready`, `prove`, `get_ready` and `measure` may also be called by another one: they change nothing that is in
    use. `contract` says what faults the encoders see, with each subset of sensors; None where it is not measured.
    `held` is what the slots of each modality hold since the last `tell`. `turn` counts the changes: what was proven in
    an earlier turn was proven beside other encoders. `problem` says why not the newest encoders run, empty while they
    do.
    """

    config: DeviceConfig
    base: Path
    pipeline: Pipeline
    slots: Slots
    updater: Updater | None
    commissioning: Commissioning | None = None
    contract: Contract | None = None
    turn: int = 0
    problem: str = ""
    _keeping: bool = False
    _measured: int = 0
    _prepared: set[tuple[str, int]] = field(default_factory=set)
    held: Mapping[str, Held] = field(default_factory=dict)
    _told: Mapping[str, EncoderHealth] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._learned = Learned(self.config)

    @property
    def state_dir(self) -> Path:
        """The folder that the device keeps its state in."""
        return self.base / self.config.device.state_dir

    @property
    def _kept(self) -> Path:
        return self.state_dir / "commissioning.npz"

    @cached_property
    def workshop(self) -> Workshop:
        """What makes the encoders of this device ready."""
        return Workshop(self.config.device.runtime, self.state_dir / "runtimes")

    @property
    def modalities(self) -> list[str]:
        """The modalities that need an encoder."""
        return sorted(set(self.pipeline.modalities.values()))

    @property
    def ensemble(self) -> Ensemble:
        """What is in use. Raises ReleaseError when nothing is yet."""
        if self.pipeline.ensemble is None:
            raise ReleaseError("missing", "encoders", "none is in use yet", "wait until the first release is fetched")
        return self.pipeline.ensemble

    def begin(self) -> None:
        """Bring encoders into the pipeline (from the slots, else from the repository), then normal running.

        Without normal running yet, a configured recording is learned from; without one, live windows are: then
        the pipeline commissions, and `finish_commissioning` ends it. Raises LinesideError when an encoder is
        missing or refused.
        """
        encoders = self.load_encoders()
        if (known := self.kept()) is not None:
            self._use(known)
        elif self.config.commissioning.recording:
            recording = Recording(self.base / self.config.commissioning.recording)
            self.learn(commission(self.config, Ensemble(encoders), recording))
            if recording.problem:
                log.warning("%s: %s", recording.path, recording.problem)
        else:
            self.pipeline.commissioning = Commissioning.begin(self.pipeline.modalities, encoders)

    def kept(self) -> Commissioning | None:
        """The normal running that is kept on the device. Raises RecordingError when it is damaged."""
        return Commissioning.load(self._kept) if self._kept.exists() else None

    def load_encoders(self) -> dict[str, Encoder]:
        """Put the newest mix of what the slots hold that certificates cover into the pipeline; fetch what is missing.

        Raises LinesideError when one is missing or refused, and nothing can stand in.
        """
        places = {modality: self._places(modality) for modality in self.modalities}
        started = newest(places, self.ready, self.config.windows.length_s)
        for modality, slot in started.slots.items():
            current = self.slots.current(modality)
            if current is None or current.sha256 != slot.sha256:
                self.slots.switch(modality)
        if self.problem != started.problem and started.problem:
            log.error("%s", started.problem)
        self.problem = started.problem
        self._put(Ensemble(started.encoders))
        return started.encoders

    def finish_commissioning(self) -> bool:
        """When enough live moments have come, learn normal from them and begin to judge; True when that happened.

        Raises LinesideError when normal cannot be learned from them; then commissioning begins anew.
        """
        live = self.pipeline.commissioning
        wanted = self.config.commissioning.minutes * 60 / self.config.windows.hop_s
        if live is None or len(live.moments) < wanted:
            return False
        self.pipeline.commissioning = None
        known = self.commissioning
        try:
            self.learn(live.finished().after(known) if self._keeping and known else live.finished())
        except LinesideError:
            self.pipeline.commissioning = Commissioning.begin(self.pipeline.modalities, self.ensemble.encoders)
            raise
        return True

    def commission_again(self, keep: bool = False) -> None:
        """Learn normal running anew from the next live moments; until then the line is judged by what is known.

        With `keep` what is known stays normal beside it.
        """
        self._keeping = keep
        self.pipeline.commissioning = Commissioning.begin(self.pipeline.modalities, self.ensemble.encoders)

    def learn(self, commissioning: Commissioning) -> None:
        """Take this as normal running from now on, and keep it on the device."""
        self._use(commissioning)
        commissioning.save(self._kept)
        with contextlib.suppress(RecordingError):  # what cannot be read back stays in memory; the next start tells
            commissioning.lie_in(self._kept)
            commissioning.rest()

    # ---- changing encoders

    def ready(self, slot: Slot) -> Encoder:
        """An encoder that can run, from what a slot holds. Raises ReleaseError naming the check."""
        return self.workshop.ready(slot.path)

    def prove(self, encoders: Mapping[str, Encoder]) -> Ensemble:
        """Those in use with `encoders` among them, accepted, self-tested and with normal running as they see it.

        Nothing is changed. Raises LinesideError when they are refused, or cannot see normal running.
        """
        together = admit_all(encoders, self.ensemble.encoders, self.config.windows.length_s)
        known = self.commissioning
        return self._learned.ensemble(together, known) if known else Ensemble(together)

    def switch(self, ensemble: Ensemble, modalities: Sequence[str]) -> None:
        """Put what was proven in use: the other slot of each of `modalities`, then the pipeline, between two moments.

        Raises LinesideError or OSError where a slot cannot be switched: those that were are switched back.
        """
        done: list[str] = []
        try:
            for modality in modalities:
                self.slots.switch(modality)
                done.append(modality)
        except (LinesideError, OSError):
            for modality in done:
                self.slots.rollback(modality)
            raise
        self.problem = ""
        self._put(ensemble)
        log.info("%s in use", ", ".join(ensemble.encoders[modality].card.name for modality in modalities))

    def before(self, modalities: Sequence[str]) -> Ensemble:
        """The encoders in use with the previous ones of `modalities` in their place.

        Raises LinesideError when there are none, or they do not go together with the rest.
        """
        return self.prove({modality: self.ready(self._previous(modality)) for modality in modalities})

    def back(self, modalities: Sequence[str]) -> None:
        """Go back to the encoders in the other slots, as one, without any network. Raises as `before` and `switch`."""
        self.switch(self.before(modalities), modalities)

    # ---- what can wait

    @property
    def unready(self) -> list[str]:
        """Modalities whose rollback would have to learn normal running first."""
        if self.commissioning is None:
            return []
        return [m for m, one in self._told.items() if one.previous and (m, self.turn) not in self._prepared]

    def get_ready(self, modality: str) -> None:
        """Learn normal running as the previous encoder of a modality sees it, so that a rollback need not.

        One that does not go together with what runs is told in the log: a rollback to it will be refused.
        """
        turn = self.turn
        try:
            self.before([modality])
        except LinesideError as error:
            log.info("no rollback of %s: %s", modality, error)
        self._prepared = {one for one in self._prepared if one[1] == turn} | {(modality, turn)}

    def measure(self) -> None:
        """What the sensors can see now; a device without such a contract judges all the same."""
        known, turn = self.commissioning, self.turn
        self._measured = turn
        if known is None:
            return
        try:
            measured = contract.measure(self.ensemble, known, self.config)
            write_atomic(self.state_dir / "contract.json", contract.to_json(measured))
        except (LinesideError, OSError) as error:
            log.warning("sensitivity is not known: %s", error)
            return
        finally:
            known.rest()
        if turn == self.turn:
            self.contract = measured

    @property
    def unmeasured(self) -> bool:
        """Whether the encoders in use have not been measured yet."""
        return self.commissioning is not None and self._measured != self.turn

    # ---- told

    def health(self) -> dict[str, EncoderHealth]:
        """Encoders in use, by modality, as they were after the last change: to hash the slots' files takes its time."""
        return dict(self._told)

    def tell(self) -> None:
        """Look at the slots anew, after something was staged into one."""
        running: Mapping[str, Encoder] = self.pipeline.ensemble.encoders if self.pipeline.ensemble else {}
        self.held = {
            modality: Held(self.slots.current(modality), self.slots.previous(modality)) for modality in running
        }
        self._told = {modality: _health(encoder, self.held[modality]) for modality, encoder in running.items()}
        kept = (slot for modality in running for slot in (self.slots.current(modality), self.slots.spare(modality)))
        self.workshop.prune({slot.sha256 for slot in kept if slot is not None})

    def _places(self, modality: str) -> list[Slot]:
        """What a modality could start with, the wanted one first."""
        current, previous = self.slots.current(modality), self.slots.previous(modality)
        if current is None:
            return [self._fetched(modality)]
        return [current, previous] if previous else [current]

    def _fetched(self, modality: str) -> Slot:
        slot = self.updater.fetch(modality, self.config.repository.precision) if self.updater else None
        if slot is None:
            mend = "publish one, and set [repository] url"
            raise ReleaseError("missing", modality, "no encoder on this device yet", mend)
        return slot

    def _previous(self, modality: str) -> Slot:
        slot = self.slots.previous(modality)
        if slot is None:
            mend = "publish the wanted version again and roll it out"
            raise ReleaseError("missing", modality, "there is no previous encoder to go back to", mend)
        return slot

    def _use(self, commissioning: Commissioning) -> None:
        ensemble = self._learned.ensemble(self.ensemble.encoders, commissioning)
        self.commissioning = commissioning
        self._put(ensemble)
        self.measure()

    def _put(self, ensemble: Ensemble) -> None:
        self.pipeline.ensemble, self.contract = ensemble, None
        self.turn += 1
        self.tell()


def _health(encoder: Encoder, held: Held) -> EncoderHealth:
    return EncoderHealth(
        version=str(encoder.card.version),
        previous=str(held.previous.version) if held.previous else "",
        sha256=held.current.sha256 if held.current else "",
        space=encoder.card.space,
        provider=encoder.provider,
    )
