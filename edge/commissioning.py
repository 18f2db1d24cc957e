"""Commissioning: prepared windows of normal running, kept on the device.

Kept as encoder inputs, not as embeddings, so that a new encoder learns the same normal running in its own
terms, on the device, before it is switched in. Nothing of it leaves the device but, where the device may send
evidence, a small picture of what an alarm is most like.
"""

from __future__ import annotations

import contextlib
import io
import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.config import DeviceConfig
from edge.encoder import Encoder
from edge.ensemble import Ensemble, Example
from edge.mapped import MappedArrays
from edge.monitor import Watch
from edge.rehearsal import Rehearsal, Trial, bounded, from_arrays, to_arrays
from edge.triage import Scene, scene
from lineside.clock import NS
from lineside.errors import LinesideError, RecordingError
from lineside.files import write_atomic
from lineside.fusion import MIN_MOMENTS, Encoded, Normal
from lineside.projections import Space
from lineside.states import LEAST, States
from lineside.windows import Window

log = logging.getLogger(__name__)
BATCH = 8  # an arena keeps what the largest batch took: of 64 pictures of 224 x 224 that is 300 MB
MOST_MOMENTS = 2_400  # twenty minutes at the usual hop: some 170 MB of a camera and a microphone on disk
NORMAL, SHOWN = "normal", "shown:"
SCENE_WINDOWS = 128  # spread over all; medians of pictures take their time


@dataclass
class Commissioning:
    """Moments of normal running: per sensor its prepared window, or None where the sensor was absent or flagged.

    `fingerprints` names the preparation per sensor; a window of another preparation is not comparable. `start_ns` says
    when each moment began: what follows it closely remembers it. `states` are what the station said of itself in each.
    `faulty` is what faults make of some of them, laid over them while it lasts by `rehearsal` (None once it is read).
    `shown` are moments that are not normal, whose states are the kinds of faults that a recording's labels tell of: the
    recogniser learns them, normal running does not. `mapped` is the file that windows lie in once they are kept: twenty
    minutes are hundreds of megabytes, which are looked at only when encoders change.
    """

    modalities: dict[str, str]
    fingerprints: dict[str, str]
    moments: list[dict[str, NDArray[np.generic]]] = field(default_factory=list)
    start_ns: list[int] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    faulty: tuple[Trial, ...] = ()
    rehearsal: Rehearsal | None = None
    shown: Commissioning | None = None
    mapped: MappedArrays | None = field(default=None, repr=False, compare=False)

    @classmethod
    def begin(cls, modalities: Mapping[str, str], encoders: Mapping[str, Encoder]) -> Commissioning:
        """An empty set for these sensors (name -> modality), prepared as these encoders (by modality) want it."""
        prints = {sensor: encoders[modality].card.prepare_sha256 for sensor, modality in modalities.items()}
        specs = {modality: encoder.spec for modality, encoder in encoders.items()}
        return cls(dict(modalities), prints, rehearsal=Rehearsal(specs))

    def add(self, prepared: dict[str, NDArray[np.generic]], start_ns: int, state: str = "") -> None:
        """Take the prepared windows of one moment; an empty moment is passed over."""
        if prepared:
            self.start_ns.append(start_ns)
            self.states.append(state)
            self.moments.append(prepared)

    def rehearse(self, good: Mapping[str, Window]) -> None:
        """Lay the fault whose turn it is over the windows of the moment that was added last."""
        if self.rehearsal is not None:
            self.faulty = self.rehearsal.hear(self.faulty, good)

    def finished(self) -> Commissioning:
        """What there is by now, to which no pipeline adds, without the raw windows that a rehearsal holds."""
        moments = [*self.moments]
        start_ns, states = self.start_ns[: len(moments)], self.states[: len(moments)]
        return replace(self, moments=moments, start_ns=start_ns, states=states, rehearsal=None)

    def after(self, before: Commissioning) -> Commissioning:
        """This and what was known before it, thinned evenly so that there are at most MOST_MOMENTS.

        Raises LinesideError where that was of other sensors or another preparation.
        """
        if (before.modalities, before.fingerprints) != (self.modalities, self.fingerprints):
            reason = "what is known is of other sensors, or prepared otherwise"
            raise LinesideError("commissioning", reason, "commission without keeping it")
        step = -(-len(before.moments) // max(1, MOST_MOMENTS - len(self.moments)))
        start_ns = [*before.start_ns[::step], *self.start_ns]
        there = set(start_ns)
        return replace(
            self,
            moments=[*before.moments[::step], *self.moments],
            start_ns=start_ns,
            states=[*before.states[::step], *self.states],
            faulty=bounded([trial for trial in (*before.faulty, *self.faulty) if trial.start_ns in there]),
            shown=self.shown.after(before.shown) if self.shown and before.shown else self.shown or before.shown,
        )

    def encoded(
        self, encoders: Mapping[str, Encoder], known: Mapping[str, Encoded] | None = None
    ) -> dict[str, Encoded]:
        """What these encoders make of it: a row a moment by sensor, NaN where the sensor is missing.

        What is `known` of a sensor already is taken as it is.
        A sensor whose modality has no encoder was taken away since. Raises LinesideError when one cannot see it.
        """
        found = {}
        for sensor, modality in self.modalities.items():
            if (encoder := encoders.get(modality)) is None:
                continue
            if encoder.card.prepare_sha256 != self.fingerprints[sensor]:
                reason = f"{encoder.card.name} prepares windows otherwise than at commissioning"
                raise LinesideError(sensor, reason, "commission again: `lineside edge commission`")
            found[sensor] = known[sensor] if known and sensor in known else self._encode(sensor, encoder)
        return found

    def ensemble(
        self, encoders: Mapping[str, Encoder], config: DeviceConfig, known: Mapping[str, Encoded] | None = None
    ) -> Ensemble:
        """These encoders with normal running as they see it, and what is to be watched for slow change.

        `known` is as in `encoded`. Raises LinesideError when they cannot see it, or it is too short.
        """
        encoded = self.encoded(encoders, known)
        try:
            normal = Normal.fit(encoded, config.commissioning.coreset)
        except ValueError as error:
            mend = f"commission on more than {MIN_MOMENTS} moments of normal running"
            raise LinesideError("commissioning", str(error), mend) from error
        by_state = self._by_state(encoded, config)
        seen = {sensor: one.embedding[np.isfinite(one.embedding).all(axis=1)] for sensor, one in encoded.items()}
        watch = Watch(
            spaces={sensor: Space.fit(rows) for sensor, rows in seen.items()},
            pairs=tuple("+".join(pair) for pair in normal.pairs),
            hop_ns=round(config.windows.hop_s * NS),
            learn_hours=config.alarm.learn_hours,
            false_alarm_days=config.alarm.days_each,
            states=config.device.states,
            detector=config.alarm.drift_detector,
        )
        return Ensemble(
            encoders,
            normal,
            watch,
            self.start_ns[-1],
            self._scenes(encoders),
            by_state,
            self._recogniser(encoded, by_state, encoders),
            self.example,
        )

    def example(self, sensor: str, number: int) -> Example:
        """A sensor's window in one moment."""
        return Example(self.start_ns[number], self.moments[number][sensor])

    def _by_state(self, encoded: Mapping[str, Encoded], config: DeviceConfig) -> dict[str, Normal]:
        """Normal running in each of the device's states, but for those with too few moments of any sensor."""
        found = {}
        for state in config.device.states:
            rows = np.array([one == state for one in self.states])
            inside = {sensor: both.at(rows) for sensor, both in encoded.items()}
            with contextlib.suppress(ValueError):  # too few: the pipeline tells when the station is in it
                found[state] = Normal.fit(inside, config.commissioning.coreset, np.flatnonzero(rows))
        return found

    def _recogniser(
        self, encoded: Mapping[str, Encoded], by_state: Mapping[str, Normal], encoders: Mapping[str, Encoder]
    ) -> States | None:
        """What tells the learned states, and the kinds of faults that were shown, apart; None where there are not two.

        Without states of the station all of normal running is one, NORMAL. A kind that some sensor was seldom well in
        is told by its health rule, if by anything: it is left out.
        """
        normal = (
            [state if state in by_state else "" for state in self.states] if by_state else [NORMAL] * len(self.moments)
        )
        features = {sensor: both.features for sensor, both in encoded.items()}
        kinds: list[str] = []
        if self.shown is not None:
            faults = {sensor: both.features for sensor, both in self.shown.encoded(encoders).items()}
            kinds = _often(self.shown.states, faults)
            features = {sensor: np.concatenate([rows, faults[sensor]]) for sensor, rows in features.items()}
        labels = [*normal, *kinds]
        if len({*labels} - {""}) < 2:
            return None
        try:
            return States.fit(features, labels)
        except ValueError as error:
            log.warning("states are not recognised: %s", error)
            return None

    def _scenes(self, encoders: Mapping[str, Encoder]) -> dict[str, Scene]:
        """The background of each sensor that has one."""
        found = {}
        for sensor, modality in self.modalities.items():
            windows = [moment[sensor] for moment in self.moments if sensor in moment]
            if modality in encoders and windows:
                chosen = windows[:: -(-len(windows) // SCENE_WINDOWS)]
                found[sensor] = scene(encoders[modality].spec, np.stack(chosen))
        return {sensor: known for sensor, known in found.items() if known is not None}

    def _encode(self, sensor: str, encoder: Encoder) -> Encoded:
        have = [i for i, moment in enumerate(self.moments) if sensor in moment]
        found = encode(encoder, [self.moments[i][sensor] for i in have])
        look = None if found.look is None else self._rows(have, found.look)
        return Encoded(self._rows(have, found.embedding), self._rows(have, found.features), look)

    def _rows(self, have: list[int], found: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = np.full((len(self.moments), found.shape[1]), np.nan, np.float32)
        rows[have] = found
        return rows

    def save(self, path: Path) -> None:
        """Write the set as one npz file, atomically. Raises OSError; then nothing is changed."""
        buffer = io.BytesIO()
        shown = {} if self.shown is None else {SHOWN + name: array for name, array in self.shown._arrays().items()}
        np.savez(buffer, **self._arrays(), **shown, **to_arrays(self.faulty))  # type: ignore[arg-type]
        write_atomic(path, buffer.getvalue(), mode=0o600)

    def lie_in(self, path: Path) -> None:
        """Give up the windows in memory for those that `save` wrote. Raises RecordingError; then nothing is changed."""
        kept = self.load(path)
        self.moments, self.faulty, self.shown, self.mapped = kept.moments, kept.faulty, kept.shown, kept.mapped

    def rest(self) -> None:
        """Give the memory of windows back that lie in a file, until they are looked at again."""
        if self.mapped is not None:
            self.mapped.rest()

    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        arrays: dict[str, NDArray[np.generic]] = {}
        for sensor, modality in self.modalities.items():
            have = [i for i, moment in enumerate(self.moments) if sensor in moment]
            arrays[f"{sensor}:about"] = np.array([modality, self.fingerprints[sensor]])
            arrays[f"{sensor}:index"] = np.array(have, np.int64)
            arrays[f"{sensor}:windows"] = np.stack([self.moments[i][sensor] for i in have]) if have else np.zeros(0)
        return arrays | {"start_ns": np.array(self.start_ns, np.int64), "states": np.array(self.states, np.str_)}

    @classmethod
    def load(cls, path: Path) -> Commissioning:
        """Read a set that `save` wrote. Raises RecordingError when the file is damaged."""
        try:
            file = MappedArrays(path)
            shown = cls._from(file, SHOWN) if f"{SHOWN}start_ns" in file else None
            return replace(cls._from(file), faulty=from_arrays(file), shown=shown, mapped=file)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            mend = "delete it and commission again"
            raise RecordingError(str(path), f"commissioning cannot be read ({error})", mend) from error

    @classmethod
    def _from(cls, file: Mapping[str, NDArray[np.generic]], before: str = "") -> Commissioning:
        """The set whose arrays have names that begin so, of those that `_arrays` gave."""
        ends = [name.removeprefix(before) for name in file if name.startswith(before)]
        sensors = [name.removesuffix(":about") for name in ends if name.endswith(":about") and SHOWN not in name]
        about = {sensor: [str(value) for value in file[f"{before}{sensor}:about"]] for sensor in sensors}
        start_ns: list[int] = file[f"{before}start_ns"].tolist()
        states: list[str] = file[f"{before}states"].tolist() if f"{before}states" in file else [""] * len(start_ns)
        moments: list[dict[str, NDArray[np.generic]]] = [{} for _ in start_ns]
        for sensor in sensors:
            windows = file[f"{before}{sensor}:windows"]
            for place, i in enumerate(file[f"{before}{sensor}:index"].tolist()):
                moments[i][sensor] = windows[place]
        modalities, fingerprints = ({sensor: told[i] for sensor, told in about.items()} for i in (0, 1))
        return cls(modalities, fingerprints, moments, start_ns, states)


def _often(states: Sequence[str], features: Mapping[str, NDArray[np.float32]]) -> list[str]:
    """The states, without those in which a sensor has fewer windows than lineside.states wants."""
    there = [np.isfinite(rows).all(axis=1) for rows in features.values()]
    named = np.array(states)
    kept = {state for state in {*states} if all((seen & (named == state)).sum() >= LEAST for seen in there)}
    return [state if state in kept else "" for state in states]


def encode(encoder: Encoder, windows: Sequence[NDArray[np.generic]]) -> Encoded:
    """Prepared windows, encoded BATCH at a time; of none, no rows."""
    done = [encoder.encode(np.stack(windows[start : start + BATCH])) for start in range(0, len(windows), BATCH)]
    if not done:
        return Encoded(np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32))
    looks = [one.look for one in done if one.look is not None]
    return Encoded(
        np.concatenate([one.embedding for one in done]),
        np.concatenate([one.features for one in done]),
        np.concatenate(looks) if looks else None,
    )
