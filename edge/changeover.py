"""Changing encoders while the line runs: fetch, verify, prove, learn normal anew, switch; or leave all as it was."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge import contract
from edge.commissioning import Commissioning
from edge.config import DeviceConfig
from edge.contract import Contract
from edge.encoder import Encoder
from edge.ensemble import Ensemble, admit
from edge.pipeline import Pipeline
from edge.replay import commission
from edge.slots import Slot, Slots
from edge.updater import Updater
from lineside.errors import LinesideError, ReleaseError
from lineside.files import write_atomic
from lineside.messages import EncoderHealth
from lineside.recording import Recording

log = logging.getLogger(__name__)
DECLINED_KEPT = 32


@dataclass
class Changeover:
    """Owns which encoders the pipeline uses. Its methods are called by one thread, beside the running pipeline.

    `contract` says what faults they see, with each subset of sensors; None where it could not be measured.
    """

    config: DeviceConfig
    base: Path
    pipeline: Pipeline
    slots: Slots
    updater: Updater | None
    commissioning: Commissioning | None = None
    contract: Contract | None = None
    _keeping: bool = False

    @property
    def _state(self) -> Path:
        return self.base / self.config.device.state_dir

    @property
    def _kept(self) -> Path:
        return self._state / "commissioning.npz"

    @property
    def modalities(self) -> list[str]:
        """The modalities that need an encoder."""
        return sorted(set(self.pipeline.modalities.values()))

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
        """Put the encoders of the current slots into the pipeline, fetching those that are missing.

        Raises LinesideError when one is missing or refused.
        """
        encoders: dict[str, Encoder] = {}
        for modality in self.modalities:
            if (slot := self.slots.current(modality)) is not None:
                encoders = admit(Encoder.load(slot.path), encoders)
            else:
                encoders = admit(Encoder.load(self._fetched(modality).path), encoders)
                self.slots.switch(modality)
        self.pipeline.ensemble = Ensemble(encoders)
        return encoders

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
            self.pipeline.commissioning = Commissioning.begin(self.pipeline.modalities, self._ensemble.encoders)
            raise
        return True

    def commission_again(self, keep: bool = False) -> None:
        """Learn normal running anew from the next live moments; until then the line is judged by what is known.

        With `keep` what is known stays normal beside it.
        """
        self._keeping = keep
        self.pipeline.commissioning = Commissioning.begin(self.pipeline.modalities, self._ensemble.encoders)

    def learn(self, commissioning: Commissioning) -> None:
        """Take this as normal running from now on, and keep it on the device."""
        self._use(commissioning)
        commissioning.save(self._kept)

    def update(self, modality: str, asked: bool = True) -> str:
        """Bring in what the repository names for one modality; the version now in use.

        What failed here before, or was rolled back from, is taken only when a person asked for it. Raises
        ReleaseError when it is refused: the running encoder stays.
        """
        if self.updater is None:
            raise ReleaseError("missing", modality, "no repository is configured", "set [repository] url")
        slot = self.updater.fetch(modality, self.config.repository.precision)
        if slot is not None and (asked or slot.sha256 not in self._declined()):
            try:
                self._change(slot)
            except LinesideError:
                self._decline(slot.sha256)
                raise
            self.slots.switch(modality)
        return self._ensemble.versions[modality]

    def rollback(self, modality: str) -> str:
        """Go back to the encoder in the other slot, without any network; the version now in use."""
        now, slot = self.slots.current(modality), self.slots.previous(modality)
        if slot is None:
            mend = "publish the wanted version again and roll it out"
            raise ReleaseError("missing", modality, "there is no previous encoder to go back to", mend)
        self._change(slot)
        self.slots.rollback(modality)
        if now is not None:
            self._decline(now.sha256)
        return self._ensemble.versions[modality]

    def health(self) -> dict[str, EncoderHealth]:
        """Encoders in use, by modality."""
        running: Mapping[str, Encoder] = self.pipeline.ensemble.encoders if self.pipeline.ensemble else {}
        return {modality: self._health(modality, encoder) for modality, encoder in running.items()}

    def _declined(self) -> list[str]:
        """SHA-256 of the encoders that the device takes no more by itself."""
        path = self._state / "declined.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=list[str])
        except FileNotFoundError:
            return []
        except msgspec.DecodeError as error:
            log.warning("%s is damaged (%s) and begun anew: declined versions may come back once", path, error)
            return []

    def _decline(self, sha256: str) -> None:
        declined = [*(one for one in self._declined() if one != sha256), sha256][-DECLINED_KEPT:]
        write_atomic(self._state / "declined.json", msgspec.json.encode(declined))

    @property
    def _ensemble(self) -> Ensemble:
        if self.pipeline.ensemble is None:
            raise ReleaseError("missing", "encoders", "none is in use yet", "wait until the first release is fetched")
        return self.pipeline.ensemble

    def _fetched(self, modality: str) -> Slot:
        slot = self.updater.fetch(modality, self.config.repository.precision) if self.updater else None
        if slot is None:
            mend = "publish one, and set [repository] url"
            raise ReleaseError("missing", modality, "no encoder on this device yet", mend)
        return slot

    def _change(self, slot: Slot) -> None:
        """Prove the encoder in `slot`, learn normal with it, and put it into the pipeline between two moments."""
        encoders = admit(Encoder.load(slot.path), self._ensemble.encoders)
        known = self.commissioning
        self.pipeline.ensemble = known.ensemble(encoders, self.config) if known else Ensemble(encoders)
        self._measure()
        log.info("%s is in use", encoders[slot.modality].card.name)

    def _use(self, commissioning: Commissioning) -> None:
        self.pipeline.ensemble = commissioning.ensemble(self._ensemble.encoders, self.config)
        self.commissioning = commissioning
        self._measure()

    def _measure(self) -> None:
        """What the sensors can see now; a device without such a contract judges all the same."""
        self.contract = None
        if self.commissioning is None:
            return
        try:
            self.contract = contract.measure(self._ensemble, self.commissioning, self.config)
            write_atomic(self._state / "contract.json", contract.to_json(self.contract))
        except (LinesideError, OSError) as error:
            log.warning("sensitivity is not known: %s", error)

    def _health(self, modality: str, encoder: Encoder) -> EncoderHealth:
        now, before = self.slots.current(modality), self.slots.previous(modality)
        return EncoderHealth(
            version=str(encoder.card.version),
            previous=str(before.version) if before else "",
            sha256=now.sha256 if now else "",
            space=encoder.card.space,
            provider=encoder.provider,
        )
