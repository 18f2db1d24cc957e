"""How long each stage of the hot path takes, counted as it runs: what `/metrics` and `lineside edge bench` tell."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from time import perf_counter_ns

STAGES = ("cut", "check", "prepare", "encode", "judge", "drift", "store")
BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_BOUNDS_NS = tuple(round(bound * 1e9) for bound in BOUNDS_S)


class Stopwatch:
    """Counts runs of a `with` block and their time: `counts` by BOUNDS_S (at most; the last is of all beyond).

    Used by one thread, for which it costs less than a microsecond; any other may read it.

    >>> watch = Stopwatch()
    >>> with watch:
    ...     pass
    >>> sum(watch.counts), watch.total_ns > 0
    (1, True)
    """

    __slots__ = ("_start_ns", "counts", "total_ns")

    def __init__(self) -> None:
        self.counts, self.total_ns, self._start_ns = [0] * (len(BOUNDS_S) + 1), 0, 0

    def __enter__(self) -> None:
        self._start_ns = perf_counter_ns()

    def __exit__(self, *_: object) -> None:
        took = perf_counter_ns() - self._start_ns
        self.total_ns += took
        self.counts[bisect_left(_BOUNDS_NS, took)] += 1

    def cumulative(self) -> Iterator[tuple[str, float]]:
        """Runs of at most each bound, in seconds as text, and of any length (`+Inf`): Prometheus' buckets."""
        total = 0
        for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), self.counts, strict=True):
            total += count
            yield bound, float(total)


class Stages(dict[str, Stopwatch]):
    """A stopwatch for each of STAGES."""

    def __init__(self) -> None:
        super().__init__((name, Stopwatch()) for name in STAGES)
