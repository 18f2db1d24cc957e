"""A release of one encoder: what its file says of itself, and the check that accepts or refuses it. Pure.

The card of an encoder lives in the metadata of its ONNX file (ONNX IR, `metadata_props`), one `lineside.*` key a
field, each value JSON. A device reads it only after the file's hash was found in signed metadata.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from lineside import features
from lineside.errors import ReleaseError
from lineside.windows import Window

PREFIX = "lineside."


class Gate(msgspec.Struct, frozen=True):
    """One gate: it passes when `value` is on the right side of `limit` (`at_most` tells which side)."""

    name: str
    value: float
    limit: float
    at_most: bool

    @property
    def passed(self) -> bool:
        """Whether the gate lets the model through; a value that is not a number never does."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit


class Waiver(msgspec.Struct, frozen=True, kw_only=True):
    """Why a gate that failed with this very value may be passed over: who says so, when, and a signature of it all.

    `stage` names the weights that it is about, `key` is the public half of an Ed25519 key (hexadecimal), `signature`
    signs `said` (hexadecimal, RFC 8032).
    """

    stage: str
    gate: str
    value: float
    limit: float
    reason: str
    by: str
    at_ns: int
    key: str
    signature: str = ""

    @property
    def said(self) -> bytes:
        """What the signature is of: all the rest, as JSON with its keys in order."""
        return msgspec.json.encode(msgspec.structs.replace(self, signature=""), order="sorted")


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage proves of its change, computed without old data.

    `embedding_drift` is the relative RMS change of old embeddings before normalisation, per modality;
    `similarity_drift` is the RMS change of old dot products relative to their RMS, per pair `a+b`. Both are empty
    for a first stage, which has nothing to forget. `mixes` are the sets of encoders, identity (Card.encoder) by
    modality, that were measured together and passed: the stage's own, and those with old ones that it was certified
    beside. `waivers` are the failed gates that somebody answers for.
    """

    stage: int
    parent: str
    embedding_drift: dict[str, float]
    similarity_drift: dict[str, float]
    gates: list[Gate]
    mixes: list[dict[str, str]] = []
    waivers: list[Waiver] = []

    @property
    def refused(self) -> Gate | None:
        """The first gate that failed and that nobody waived at its number or a worse one; None when there is none."""
        return next((gate for gate in self.gates if not (gate.passed or self._waived(gate))), None)

    def _waived(self, gate: Gate) -> bool:
        return any(waiver.gate == gate.name and waiver.value == gate.value for waiver in self.waivers)


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """What an encoder file says of itself.

    `version` counts up per modality; `space` names the embedding space that encoders must share to be compared;
    `encoder` is the identity of its weights and preparation, the same for every precision;
    `prepare` is the canonical JSON of its preparation; `golden_inputs` holds raw windows and `golden_outputs` what
    the encoder makes of them (see `pack_golden`); `tolerance` is the largest allowed 1 - cosine in the self-test;
    `window_s` is the length of the windows that it learned from, seconds (0: its exporter did not say); `base` is the
    identity of the encoder that its adapters stand on, whose weights are in it unchanged ("": it has none).
    """

    modality: str
    version: int
    space: str
    encoder: str
    dim: int
    precision: str
    prepare: str
    prepare_sha256: str
    stage: str
    golden_inputs: bytes
    golden_outputs: bytes
    tolerance: float
    certificate: Certificate
    window_s: float = 0.0
    base: str = ""

    @property
    def name(self) -> str:
        """Stable name of this release, `camera-3`."""
        return f"{self.modality}-{self.version}"


def to_metadata(card: Card) -> dict[str, str]:
    """The card as ONNX metadata properties."""
    return {PREFIX + name: msgspec.json.encode(getattr(card, name)).decode() for name in card.__struct_fields__}


def from_metadata(metadata: Mapping[str, str], name: str) -> Card:
    """Read the card of file `name` from its metadata. Raises ReleaseError (check `card`)."""
    fields = {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}
    try:
        raw = {key: msgspec.json.decode(value) for key, value in fields.items()}
        return msgspec.convert(raw, Card)
    except msgspec.DecodeError as error:  # ValidationError is one too
        mend = "export it with `lineside export build`"
        raise ReleaseError("card", name, f"is no encoder of ours ({error})", mend) from error


def accept(card: Card, running: Mapping[str, Card], window_s: float = 0.0) -> None:
    """Accept or refuse a candidate beside the encoders that run now, from what their cards say.

    `window_s` is the length of the windows that it would get, seconds; 0 where nobody knows. How far they stand apart
    is nothing to an encoder, which sees one at a time. Raises ReleaseError whose `check` is `prepare` (a preparation
    that this version does not implement, or whose hash is another), `windows` (it learned from longer or shorter
    ones), `gates` (a failed gate in its certificate that is not waived), `space` (it cannot be compared
    with its peers) or `compatibility` (no certificate says that it was measured together with them).
    """
    spec = features.from_json(card.prepare)
    if features.fingerprint(spec) != card.prepare_sha256 or features.modality(spec) != card.modality:
        raise ReleaseError("prepare", card.name, "its preparation and the hash of it differ", "export it again")
    if card.window_s and window_s and card.window_s != window_s:
        told = f"it learned from windows of {card.window_s:g} s, and would get windows of {window_s:g} s"
        mend = f"set [windows] length_s = {card.window_s:g}, or train on windows of {window_s:g} s"
        raise ReleaseError("windows", card.name, told, mend)
    if (gate := card.certificate.refused) is not None:
        told = f"{gate.name} is {gate.value:.4g}, limit {gate.limit:.4g}"
        raise ReleaseError("gates", card.name, told, "train the stage again")
    for modality, other in running.items():
        if modality != card.modality and other.space != card.space:
            told = f"space {card.space!r} cannot be compared with {other.name} in {other.space!r}"
            raise ReleaseError("space", card.name, told, f"publish encoders of one space, {modality} too")
    together = {**running, card.modality: card}
    if not certified(together):
        others = ", ".join(f"{other.name} of {other.stage}" for other in _strangers(card, running))
        told = f"{card.name} of {card.stage} was not certified together with {others}"
        mend = "certify the newer stage with `lineside train certify --against` the older, and export it again"
        raise ReleaseError("compatibility", card.name, told, mend)


def _strangers(card: Card, running: Mapping[str, Card]) -> list[Card]:
    """Those that make a pair with `card` that nobody measured; all others where it is only the whole that is not."""
    others = [other for modality, other in running.items() if modality != card.modality]
    return [other for other in others if not certified({card.modality: card, other.modality: other})] or others


def certified(cards: Mapping[str, Card]) -> bool:
    """Whether encoders, by modality, were measured together: all are of one mix in the certificate of one of them."""
    mix = {modality: card.encoder for modality, card in cards.items()}
    known = [each for card in cards.values() for each in card.certificate.mixes]
    return len(mix) < 2 or any(mix.items() <= each.items() for each in known)


def self_test(card: Card, embed: Callable[[NDArray[np.generic]], NDArray[np.float32]]) -> float:
    """Run the golden windows through preparation and encoder; the largest 1 - cosine to what is expected.

    `embed` takes a batch (n, *shape) and gives (n, dim). Raises ReleaseError (check `golden`) beyond the tolerance.
    """
    windows, expected = unpack_golden(card)
    spec = features.from_json(card.prepare)
    got = embed(np.stack([features.prepare(spec, window) for window in windows]))
    if got.shape != expected.shape or not np.isfinite(got).all():
        raise ReleaseError("golden", card.name, f"embeddings of shape {got.shape} or not finite", "export it again")
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
    worst = float(np.max(1.0 - np.sum(got * expected, axis=1) / norms))
    if not worst <= card.tolerance:
        told = f"1 - cosine is {worst:.2e}, limit {card.tolerance:.0e}"
        raise ReleaseError("golden", card.name, told, "this runtime computes something else; try another provider")
    return worst


def pack_golden(windows: list[Window], outputs: NDArray[np.float32]) -> tuple[bytes, bytes]:
    """Golden windows and their embeddings (n, dim) as two blobs: npz of arrays, and float32 little-endian.

    >>> spec = features.SeriesPrepare(channels=2, samples=16)
    >>> blobs = pack_golden(features.golden_windows(spec), np.ones((2, 4), np.float32))
    >>> [type(blob).__name__ for blob in blobs]
    ['bytes', 'bytes']
    """
    buffer = io.BytesIO()
    arrays = {f"window{i}": window.data for i, window in enumerate(windows)}
    rates = np.array([window.rate_hz for window in windows])
    np.savez_compressed(buffer, rates=rates, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue(), np.asarray(outputs, "<f4").tobytes()


def unpack_golden(card: Card) -> tuple[list[Window], NDArray[np.float32]]:
    """The golden windows of a card and the expected embeddings (n, dim)."""
    with np.load(io.BytesIO(card.golden_inputs), allow_pickle=False) as file:
        rates = file["rates"]
        windows = [
            Window("golden", card.modality, 0, 10**9, float(rate), file[f"window{i}"], 0)
            for i, rate in enumerate(rates)
        ]
    return windows, np.frombuffer(card.golden_outputs, "<f4").reshape(len(windows), card.dim).astype(np.float32)
