"""Runs of sequence numbers, both ends included."""

from __future__ import annotations

from collections.abc import Iterable

Range = tuple[int, int]


def merge(ranges: Iterable[Range]) -> list[Range]:
    """The same numbers as the fewest ranges, ascending.

    >>> merge([(7, 7), (1, 3), (2, 4), (8, 9)])
    [(1, 4), (7, 9)]
    """
    joined: list[Range] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def subtract(ranges: Iterable[Range], covers: Iterable[Range]) -> list[Range]:
    """What of `ranges` no range of `covers` touches, ascending.

    >>> subtract([(1, 10), (20, 21)], [(3, 4), (9, 20)])
    [(1, 2), (5, 8), (21, 21)]
    """
    left = sorted(ranges)
    for first, last in covers:
        cut: list[Range] = []
        for low, high in left:
            cut += [(low, min(high, first - 1)), (max(low, last + 1), high)] if first <= high and last >= low else []
            cut += [(low, high)] if first > high or last < low else []
        left = [(low, high) for low, high in cut if low <= high]
    return left
