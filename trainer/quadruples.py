"""Pseudo-pairs without a pair: quadruples that soft retrieval makes of unpaired pools (exmcr.md, section 2.1).

A leaf space knows the newcomer m and the overlap o, a base space knows o and the protected c. Each row of a pool asks
the others for what belongs to it. Weights over the overlap are shared by both spaces, because its memories are
row-parallel: row j is the same window in the leaf's and in the base's embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from lineside.errors import ConfigError, GateError
from trainer.encoders import unit

CHUNK = 1024


@dataclass(frozen=True)
class Memories:
    """Unit rows: newcomer (K_m, d_leaf), overlap in both spaces (K_o, d_leaf) and (K_o, d_base), partner (K_c, d_base).

    Raises ConfigError when widths or the overlap's rows do not fit each other.
    """

    m: Tensor
    o_leaf: Tensor
    o_base: Tensor
    c: Tensor

    def __post_init__(self) -> None:
        for name, a, b in (("leaf", self.m, self.o_leaf), ("base", self.c, self.o_base)):
            if a.shape[1] != b.shape[1]:
                told = f"its two modalities have embeddings of {a.shape[1]} and {b.shape[1]} dimensions"
                raise ConfigError(f"{name} space", told, "give embeddings of one stage, which has one dim")
        if len(self.o_leaf) != len(self.o_base):
            told = f"the leaf embeds {len(self.o_leaf)} windows of it, the base {len(self.o_base)}"
            raise ConfigError("overlap", told, "let both spaces embed the same windows")


@dataclass(frozen=True)
class Quadruples:
    """One row a query: newcomer and overlap in the leaf (n, d_leaf), overlap and partner in the base (n, d_base)."""

    m: Tensor
    o_leaf: Tensor
    o_base: Tensor
    c: Tensor

    def __len__(self) -> int:
        return len(self.m)

    def __getitem__(self, rows: Tensor) -> Quadruples:
        return self.each(lambda x: x[rows])

    def each(self, change: Callable[[Tensor], Tensor]) -> Quadruples:
        """With all four embeddings changed."""
        return Quadruples(change(self.m), change(self.o_leaf), change(self.o_base), change(self.c))


def gathered(parts: list[Quadruples]) -> Quadruples:
    """Quadruples one after the other."""
    columns = zip(*((p.m, p.o_leaf, p.o_base, p.c) for p in parts), strict=True)
    return Quadruples(*(torch.cat(column) for column in columns))


def soft_weights(asked: Tensor, keys: Tensor, tau: float) -> Tensor:
    """softmax(asked keys^T / tau): (n, K), rows that sum to 1.

    >>> soft_weights(torch.eye(2), torch.eye(2), 0.01).round().tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    return torch.softmax(asked @ keys.T / tau, dim=1)


class Lookup(msgspec.Struct, frozen=True):
    """How one kind of retrieval went over its `queries` in `rows` of memory.

    `peak` is the mean of the largest weight (1: every answer is a single row), `entropy` the mean entropy as a share of
    log rows (1: flat, every answer is the mean of all), `distinct` exp of the information that a query gives about the
    row (1: every query has the same answer).
    """

    name: str
    queries: int
    rows: int
    peak: float
    entropy: float
    distinct: float


class Retriever:
    """Retrieval by soft weights at one temperature, and an account of them."""

    def __init__(self, tau: float, renormalise: bool = True) -> None:
        self.tau, self.renormalise = tau, renormalise
        self._accounts: dict[str, _Account] = {}

    def weights(self, name: str, asked: Tensor, keys: Tensor) -> Tensor:
        """Soft weights (n, K), kept account of under `name`."""
        w = soft_weights(asked, keys, self.tau)
        self._accounts.setdefault(name, _Account(len(keys))).hear(w)
        return w

    def mix(self, w: Tensor, values: Tensor) -> Tensor:
        """Weighted means (n, d) of the rows of `values`, of unit length again unless switched off."""
        mean = w @ values
        return unit(mean) if self.renormalise else mean

    def told(self) -> list[Lookup]:
        """Every retrieval so far."""
        return [account.told(name) for name, account in self._accounts.items()]


class _Account:
    def __init__(self, rows: int) -> None:
        self.rows, self.queries, self.peak, self.entropy = rows, 0, 0.0, 0.0
        self.mass = torch.zeros(rows, dtype=torch.float64)

    def hear(self, w: Tensor) -> None:
        self.queries += len(w)
        self.peak += float(w.amax(dim=1).sum(dtype=torch.float64))
        self.entropy += float(_entropy(w.double()).sum())
        self.mass += w.sum(dim=0, dtype=torch.float64)

    def told(self, name: str) -> Lookup:
        mean = self.entropy / self.queries
        information = float(_entropy(self.mass / self.queries)) - mean
        flat = mean / math.log(self.rows) if self.rows > 1 else 1.0
        return Lookup(name, self.queries, self.rows, self.peak / self.queries, flat, math.exp(max(0.0, information)))


def _entropy(w: Tensor) -> Tensor:
    found: Tensor = torch.special.entr(w).sum(dim=-1)
    return found


def m_centric(ask: Retriever, known: Memories, m: Tensor) -> Quadruples:
    """The newcomer asks the leaf's overlap; the same weights give the base's, which asks for the partner."""
    w = ask.weights("m to o", m, known.o_leaf)
    o_leaf, o_base = ask.mix(w, known.o_leaf), ask.mix(w, known.o_base)
    return Quadruples(m, o_leaf, o_base, ask.mix(ask.weights("m to o to c", o_base, known.c), known.c))


def o_centric(ask: Retriever, known: Memories, o_leaf: Tensor, o_base: Tensor) -> Quadruples:
    """The overlap asks each space for the other modality."""
    m = ask.mix(ask.weights("o to m", o_leaf, known.m), known.m)
    return Quadruples(m, o_leaf, o_base, ask.mix(ask.weights("o to c", o_base, known.c), known.c))


def c_centric(ask: Retriever, known: Memories, c: Tensor) -> Quadruples:
    """The partner asks the base's overlap; the same weights give the leaf's, which asks for the newcomer."""
    w = ask.weights("c to o", c, known.o_base)
    o_leaf, o_base = ask.mix(w, known.o_leaf), ask.mix(w, known.o_base)
    return Quadruples(ask.mix(ask.weights("c to o to m", o_leaf, known.m), known.m), o_leaf, o_base, c)


KINDS: Mapping[str, Callable[[Retriever, Memories, slice], Quadruples]] = {
    "m": lambda ask, known, at: m_centric(ask, known, known.m[at]),
    "o": lambda ask, known, at: o_centric(ask, known, known.o_leaf[at], known.o_base[at]),
    "c": lambda ask, known, at: c_centric(ask, known, known.c[at]),
}


def quadruples(ask: Retriever, known: Memories, kinds: str = "moc") -> Quadruples:
    """The union of all `kinds` of quadruples, one for each row of the asking memory, in chunks of 1024 queries.

    Memories and temperature never change, so that once is enough for all epochs.
    """
    sizes = {"m": len(known.m), "o": len(known.o_leaf), "c": len(known.c)}
    with torch.no_grad():
        parts = [
            KINDS[kind](ask, known, slice(first, first + CHUNK))
            for kind in kinds
            for first in range(0, sizes[kind], CHUNK)
        ]
    return gathered(parts)


def must_not_collapse(lookups: list[Lookup], flat: float, one_hot: float, distinct: float) -> None:
    """Raises GateError naming a retrieval whose weights are flat, single rows, or the same for every query."""
    for one in lookups:
        place = f"retrieval {one.name}"
        if one.entropy > flat:
            told = f"has collapsed: weights are flat (entropy {one.entropy:.3f} of log {one.rows}, limit {flat:g})"
            raise GateError(place, told, "lower tau1, or train the two spaces longer: they do not know the overlap")
        if one.peak > one_hot:
            told = f"has collapsed: weights are one-hot (mean largest weight {one.peak:.4f}, limit {one_hot:g})"
            raise GateError(place, told, "raise tau1, or give larger pools")
        if one.distinct < distinct:
            told = f"has collapsed: every query has the same answer ({one.distinct:.3f} distinct, limit {distinct:g})"
            raise GateError(place, told, "lower tau1, or choose an overlap that tells more of the newcomer")
