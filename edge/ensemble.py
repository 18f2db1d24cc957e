"""The encoders in use with the normal running that belongs to just these: chosen, tested and swapped as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.encoder import Encoder
from edge.monitor import Watch
from edge.triage import Scene
from lineside import shapley
from lineside.errors import ReleaseError
from lineside.fusion import Encoded, Judgement, Normal
from lineside.release import accept, self_test
from lineside.states import States
from lineside.windows import Window


class Example(NamedTuple):
    """A window of normal running as one sensor's encoder was given it (lineside.features.shape), and when its moment
    began, ns."""

    start_ns: int
    prepared: NDArray[np.generic]


@dataclass(frozen=True)
class Ensemble:
    """Encoders by modality; `normal` and `watch` are None until commissioning is done, `commissioned_ns` is 0.

    `commissioned_ns` is when the last moment of commissioning began, and so tells one normal running from another;
    `scenes` are the sensors' backgrounds in it; `states` is normal running in each state of the station that it has
    learned, empty for one that tells of none; `recogniser` tells these states, and the kinds of faults that it was
    shown, apart by what sensors show; `example` gives a sensor's window in the moment of commissioning of a number.
    """

    encoders: Mapping[str, Encoder]
    normal: Normal | None = None
    watch: Watch | None = None
    commissioned_ns: int = 0
    scenes: Mapping[str, Scene] = field(default_factory=dict)
    states: Mapping[str, Normal] = field(default_factory=dict)
    recogniser: States | None = None
    example: Callable[[str, int], Example] | None = None

    @property
    def versions(self) -> dict[str, str]:
        """Version of the encoder in use, by modality."""
        return {modality: str(encoder.card.version) for modality, encoder in self.encoders.items()}

    def prepare(self, window: Window) -> NDArray[np.generic] | None:
        """The encoder input of one good window; None when rate or channels do not fit the encoder."""
        try:
            return self.encoders[window.modality].prepare(window)
        except ValueError:
            return None

    def encode(self, prepared: Mapping[str, tuple[str, NDArray[np.generic]]]) -> dict[str, Encoded]:
        """Embeddings (dim,) and features (f,) of one moment by sensor, from (modality, encoder input) by sensor.

        Embeddings are rounded to float16, as they travel: the agreement that is judged can be had again from what
        the hub keeps. Features do not travel.
        """
        found = {name: self.encoders[modality].encode(window[None]) for name, (modality, window) in prepared.items()}
        one = {name: both.at(0) for name, both in found.items()}
        return {name: each._replace(embedding=_as_sent(each.embedding)) for name, each in one.items()}

    def judge(self, encoded: Mapping[str, Encoded], state: str = "") -> Judgement | None:
        """What the moment means; None before commissioning, for sensors never seen together, or a state never learned.

        A sensor that came after commissioning stays out until the device is commissioned again. Without a state it is
        judged by all normal running.
        """
        normal = self._normal_in(state)
        if normal is None:
            return None
        return normal.judge({name: one for name, one in encoded.items() if name in normal.coresets})

    def like(self, encoded: Mapping[str, Encoded], state: str = "") -> dict[str, Example]:
        """By sensor, what of normal running its window is most like; empty before commissioning."""
        normal, example = self._normal_in(state), self.example
        if normal is None or example is None:
            return {}
        known = {name: one for name, one in encoded.items() if name in normal.coresets}
        return {name: example(name, normal.nearest(name, one)) for name, one in known.items()}

    def _normal_in(self, state: str) -> Normal | None:
        return self.states.get(state) if state else self.normal

    def recognise(self, encoded: Mapping[str, Encoded]) -> tuple[dict[str, float], dict[str, float]]:
        """Fused logit of each state by what the sensors show, and what each sensor says for the likeliest (nats).

        Both are empty where there are not two states, or no sensor that they were learned from.
        """
        known = self.recogniser
        features = {name: one.features for name, one in encoded.items() if known and name in known.sensors}
        if known is None or not features:
            return {}, {}
        logits = known.logits(features)
        seen = dict(zip(known.names, known.fused(logits).tolist(), strict=True))
        return seen, shapley.of_logits(logits, known.log_prior).contributions


def _as_sent(embedding: NDArray[np.float32]) -> NDArray[np.float32]:
    return embedding.astype("<f2").astype(np.float32)


def admit(candidate: Encoder, running: Mapping[str, Encoder], window_s: float = 0.0) -> dict[str, Encoder]:
    """The encoders as they would be with `candidate` among them, after its card and its golden vectors passed.

    `window_s` is the length of the windows here, seconds; 0 where any will do. Raises ReleaseError naming the check;
    nothing has changed then.
    """
    return admit_all({candidate.card.modality: candidate}, running, window_s)


def admit_all(
    candidates: Mapping[str, Encoder], running: Mapping[str, Encoder], window_s: float = 0.0
) -> dict[str, Encoder]:
    """As `admit` for several that come together: each is accepted beside the others and those that stay."""
    together = {**running, **candidates}
    cards = {modality: encoder.card for modality, encoder in together.items()}
    for candidate in candidates.values():
        accept(candidate.card, cards, window_s)
        self_test(candidate.card, lambda batch, one=candidate: _sound(one, one.encode(batch)).embedding)  # type: ignore[misc]
    return together


def _sound(encoder: Encoder, encoded: Encoded) -> Encoded:
    """Golden vectors are embeddings: of the features it is asked that they are of unit norm."""
    lengths = np.linalg.norm(encoded.features, axis=1)
    if not np.allclose(lengths, 1.0, atol=0.01):
        raise ReleaseError("golden", encoder.card.name, f"features of length {lengths}, not 1", "export it again")
    return encoded
