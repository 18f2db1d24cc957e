"""Cutting streams into windows and joining them into moments, whatever the sizes and times of what comes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineside.clock import NS
from lineside.windows import Cutter, Moments, Samples, Window, moments

RATE = 100.0


def run(first: int, count: int, offset_ns: int = 0) -> Samples:
    """Samples that carry their own number, from number `first` on."""
    start_ns = offset_ns + round(first * NS / RATE)
    return Samples("s", "microphone", start_ns, RATE, np.arange(first, first + count).astype(np.int16))


def cut(runs: list[Samples], length_ns: int = NS, hop_ns: int = NS // 2) -> list[Window]:
    cutter = Cutter(length_ns, hop_ns)
    return [window for samples in runs for window in cutter.push(samples)]


blocks = st.lists(st.integers(1, 150), min_size=1, max_size=30)


@given(blocks, st.integers(0, 10**18))
def test_windows_do_not_depend_on_the_size_of_blocks(sizes: list[int], offset_ns: int) -> None:
    total = sum(sizes)
    parts, first = [], 0
    for size in sizes:
        parts.append(run(first, size, offset_ns))
        first += size
    whole, pieces = cut([run(0, total, offset_ns)]), cut(parts)
    assert [window.start_ns for window in whole] == [window.start_ns for window in pieces]
    for one, other in zip(whole, pieces, strict=True):
        assert np.array_equal(one.data, other.data)
        assert "gap" not in one.flags | other.flags


@given(blocks, st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**18))
def test_windows_lie_on_the_grid_and_follow_hop_by_hop(sizes: list[int], parts: int, hops: int, offset: int) -> None:
    hop_ns = NS // 10 * parts
    windows = cut([run(0, sum(sizes), offset)], hops * hop_ns, hop_ns)
    assert all(window.start_ns % hop_ns == 0 for window in windows)
    assert {b.start_ns - a.start_ns for a, b in pairwise(windows)} <= {hop_ns}
    for window in windows:
        assert window.end_ns - window.start_ns == hops * hop_ns
        assert window.start_ns <= window.captured_ns < window.end_ns
        assert abs(len(window.data) - hops * hop_ns * RATE / NS) <= 1


@given(st.lists(st.tuples(st.integers(-(10**12), 10**12), st.integers(0, 300)), max_size=30))
def test_wild_times_never_break_the_cutter(wild: list[tuple[int, int]]) -> None:
    cutter, at_ns = Cutter(NS, NS // 2), 10**18
    for jump_ns, count in wild:
        at_ns += jump_ns
        for window in cutter.push(Samples("s", "microphone", at_ns, RATE, np.ones(count, np.int16))):
            assert len(window.data) > 0
            assert window.start_ns <= window.captured_ns < window.end_ns


def test_missing_samples_are_flagged_and_an_empty_interval_gives_no_window() -> None:
    windows = cut([run(0, 100), run(150, 50), run(200, 100), run(900, 200)], NS, NS)
    assert [(w.start_ns // NS, len(w.data), "gap" in w.flags) for w in windows] == [
        (0, 100, False),
        (1, 50, True),
        (2, 100, False),
        (9, 100, False),
        (10, 100, False),
    ]


def test_flags_of_a_run_go_to_the_windows_that_hold_it() -> None:
    windows = cut([run(0, 100), replace(run(100, 50), flags=frozenset({"gap"})), run(150, 150)], NS, NS)
    assert [window.flags for window in windows] == [frozenset(), {"gap"}, frozenset()]


def test_a_camera_is_cut_by_its_stamps() -> None:
    stamps = np.array([0, 3, 6, 9, 10, 14], np.int64) * NS // 10
    frames = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1).repeat(3, axis=3)
    windows = cut(
        [
            Samples("c", "camera", 0, 4.0, frames, stamps),
            Samples("c", "camera", 2 * NS, 4.0, frames[:1], stamps[:1] + 2 * NS),
        ],
        NS,
        NS,
    )
    assert [window.data[:, 0, 0, 0].tolist() for window in windows] == [[0, 1, 2, 3], [4, 5]]
    assert windows[0].captured_ns == 450_000_000


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 10**18))
def test_between_takes_exactly_the_samples_of_an_interval(a: int, b: int, offset_ns: int) -> None:
    first, last = sorted((a, b))
    whole = run(0, 400, offset_ns)
    start_ns, end_ns = (offset_ns + round(k * NS / RATE) for k in (first, last))
    part = whole.between(start_ns, end_ns)
    assert part.data.tolist() == list(range(first, last))
    assert not len(part.data) or part.start_ns == start_ns


# moments


def window(sensor: str, second: int) -> Window:
    return Window(sensor, "series", second * NS, (second + 1) * NS, 1.0, np.zeros((1, 1)), second * NS + NS // 2)


def test_a_moment_waits_for_all_but_not_longer_than_patience() -> None:
    join = Moments(("a", "b"), patience_ns=2 * NS)
    assert [join.push(window("a", k)) for k in range(2)] == [[], []]
    assert [sorted(m.windows) for m in join.push(window("b", 0))] == [["a", "b"]]
    given_out = [m for k in range(2, 6) for m in join.push(window("a", k))]
    assert [(m.start_ns // NS, sorted(m.windows)) for m in given_out] == [(1, ["a"]), (2, ["a"]), (3, ["a"])]
    assert join.push(window("b", 2)) == []  # too late: that moment is out already
    assert [m.start_ns // NS for m in join.flush()] == [4, 5]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40)), max_size=80))
def test_every_moment_comes_at_most_once_and_in_order(pushes: list[tuple[str, int]]) -> None:
    join = Moments(("a", "b", "c"), patience_ns=100 * NS)
    out = [m for sensor, second in pushes for m in join.push(window(sensor, second))] + join.flush()
    starts = [moment.start_ns for moment in out]
    assert starts == sorted(set(starts))
    assert all(moment.windows for moment in out)


def test_a_stream_that_is_set_back_starts_anew() -> None:
    join = Moments(("a",), patience_ns=NS)
    assert len(join.push(window("a", 1_000))) == 1
    assert [m.start_ns for m in join.push(window("a", 3))] == [3 * NS]


def test_skew_is_the_distance_of_capture_times() -> None:
    join = Moments(("a", "b"), patience_ns=NS)
    join.push(window("a", 0))
    (moment,) = join.push(replace(window("b", 0), captured_ns=NS // 2 + 7_000_000))
    assert moment.skew_ns == 7_000_000


@pytest.mark.parametrize("hop_ns", [NS // 2, NS])
def test_a_whole_stream_gives_all_moments(hop_ns: int) -> None:
    stream = [replace(run(k * 10, 10), sensor=sensor) for k in range(60) for sensor in ("a", "b", "x")]
    found = list(moments(stream, ("a", "b"), NS, hop_ns))
    assert [m.start_ns for m in found] == [k * hop_ns for k in range((6 * NS - NS) // hop_ns + 1)]
    assert all(set(m.windows) == {"a", "b"} for m in found)
