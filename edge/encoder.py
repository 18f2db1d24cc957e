"""An encoder file behind one method: prepared windows in, embeddings and features out, through ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lineside import features, release
from lineside.errors import ReleaseError
from lineside.fusion import Encoded
from lineside.look import coarse
from lineside.windows import Window

PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


@dataclass(frozen=True)
class Encoder:
    """One loaded encoder; `provider` is the runtime that really executes it, read back from the session."""

    card: release.Card
    spec: features.Prepare
    provider: str
    _session: Any

    @classmethod
    def load(cls, path: Path, threads: int = 1) -> Encoder:
        """Open an encoder file whose hash the caller has verified.

        Raises ReleaseError with check `runtime` when ONNX Runtime refuses it, `card` or `prepare` for its metadata.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        wanted = [name for name in PROVIDERS if name in onnxruntime.get_available_providers()]
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=wanted)
        except Exception as error:  # the runtime raises classes of its own that share no base
            mend = "export it again for this runtime"
            raise ReleaseError("runtime", path.name, f"ONNX Runtime refuses it ({error})", mend) from error
        card = release.from_metadata(session.get_modelmeta().custom_metadata_map, path.name)
        spec = features.from_json(card.prepare)
        return cls(card, spec, session.get_providers()[0], session)

    def encode(self, batch: NDArray[np.generic]) -> Encoded:
        """Prepared windows (n, *features.shape(spec)) to embeddings (n, dim) and features (n, f), with their own look.

        Raises ReleaseError (check `runtime`) when the graph does not take them or lacks an output.
        """
        try:
            embedding, found = self._session.run(["embedding", "features"], {"window": batch})
        except Exception as error:  # as above
            mend = "its graph and its card differ; export it again"
            raise ReleaseError("runtime", self.card.name, f"cannot run ({error})", mend) from error
        return Encoded(np.asarray(embedding, np.float32), np.asarray(found, np.float32), coarse(batch))

    def embed(self, batch: NDArray[np.generic]) -> NDArray[np.float32]:
        """The embeddings of `encode` alone."""
        return self.encode(batch).embedding

    def prepare(self, window: Window) -> NDArray[np.generic]:
        """One raw window to one input of this encoder. Raises ValueError when it does not fit."""
        return features.prepare(self.spec, window)
