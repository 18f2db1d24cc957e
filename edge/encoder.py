"""An encoder file behind one method: prepared windows in, embeddings and features out, through a runtime's session."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.runtimes import RUNTIMES, Place, Session
from lineside import features, release
from lineside.errors import ReleaseError
from lineside.files import sha256
from lineside.fusion import Encoded
from lineside.look import coarse
from lineside.windows import Window


@dataclass(frozen=True)
class Encoder:
    """One loaded encoder; `provider` is the runtime that really executes it, read back from the session."""

    card: release.Card
    spec: features.Prepare
    provider: str
    _session: Session

    @classmethod
    def load(cls, path: Path, threads: int = 1) -> Encoder:
        """Open an encoder file whose hash the caller has verified, on the CPU in this process: see edge.workshop.

        Raises ReleaseError with check `runtime` when ONNX Runtime refuses it, `card` or `prepare` for its metadata.
        """
        place = Place(str(path), sha256(path.read_bytes()), threads=threads)
        opened = RUNTIMES["onnxruntime-cpu"].open(place)
        return cls.of(place.card(), opened.session, opened.provider)

    @classmethod
    def of(cls, card: release.Card, session: Session, provider: str) -> Encoder:
        """A session with the card of its file. Raises ReleaseError (check `prepare`)."""
        return cls(card, features.from_json(card.prepare), provider, session)

    def encode(self, batch: NDArray[np.generic]) -> Encoded:
        """Prepared windows (n, *features.shape(spec)) to embeddings (n, dim) and features (n, f), with their own look.

        Raises ReleaseError (check `runtime`) when the graph does not take them or lacks an output.
        """
        try:
            embedding, found = self.run(batch)
        except ReleaseError:
            raise  # a process that is away says so itself
        except Exception as error:  # runtimes raise classes of their own that share no base
            mend = "its graph and its card differ; export it again"
            raise ReleaseError("runtime", self.card.name, f"cannot run ({error})", mend) from error
        return Encoded(np.asarray(embedding, np.float32), np.asarray(found, np.float32), coarse(batch))

    def run(self, batch: NDArray[np.generic]) -> Any:
        """The graph alone, which takes one window at a time: embeddings and features as the runtime gives them."""
        rows = [self._session.run(["embedding", "features"], {"window": batch[i : i + 1]}) for i in range(len(batch))]
        return rows[0] if len(rows) == 1 else [np.concatenate(part) for part in zip(*rows, strict=True)]

    def embed(self, batch: NDArray[np.generic]) -> NDArray[np.float32]:
        """The embeddings of `encode` alone."""
        return self.encode(batch).embedding

    def prepare(self, window: Window) -> NDArray[np.generic]:
        """One raw window to one input of this encoder. Raises ValueError when it does not fit."""
        return features.prepare(self.spec, window)
