"""The encoders in use with the normal running that belongs to just these: chosen, tested and swapped as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge.encoder import Encoder
from edge.monitor import Watch
from edge.triage import Scene
from lineside.errors import ReleaseError
from lineside.fusion import Encoded, Judgement, Normal
from lineside.release import accept, self_test
from lineside.windows import Window


@dataclass(frozen=True)
class Ensemble:
    """Encoders by modality; `normal` and `watch` are None until commissioning is done, `commissioned_ns` is 0.

    `commissioned_ns` is when the last moment of commissioning began, and so tells one normal running from another;
    `scenes` are the sensors' backgrounds in it.
    """

    encoders: Mapping[str, Encoder]
    normal: Normal | None = None
    watch: Watch | None = None
    commissioned_ns: int = 0
    scenes: Mapping[str, Scene] = field(default_factory=dict)

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
        return {
            name: Encoded(one.embedding[0].astype("<f2").astype(np.float32), one.features[0])
            for name, one in found.items()
        }

    def judge(self, encoded: Mapping[str, Encoded]) -> Judgement | None:
        """What the moment means; None before commissioning, or for sensors never seen together.

        A sensor that came after commissioning stays out until the device is commissioned again.
        """
        if self.normal is None:
            return None
        return self.normal.judge({name: one for name, one in encoded.items() if name in self.normal.coresets})


def admit(candidate: Encoder, running: Mapping[str, Encoder]) -> dict[str, Encoder]:
    """The encoders as they would be with `candidate` among them, after its card and its golden vectors passed.

    Raises ReleaseError naming the check; nothing has changed then.
    """
    accept(candidate.card, {modality: encoder.card for modality, encoder in running.items()})
    self_test(candidate.card, lambda batch: _sound(candidate, candidate.encode(batch)).embedding)
    return {**running, candidate.card.modality: candidate}


def _sound(encoder: Encoder, encoded: Encoded) -> Encoded:
    """Golden vectors are embeddings: of the features it is asked that they are of unit norm."""
    lengths = np.linalg.norm(encoded.features, axis=1)
    if not np.allclose(lengths, 1.0, atol=0.01):
        raise ReleaseError("golden", encoder.card.name, f"features of length {lengths}, not 1", "export it again")
    return encoded
