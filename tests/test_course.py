"""What the charts of a station are drawn from: hub.overview, hub.course. Long spans read minutes, never all moments."""

from __future__ import annotations

import msgspec
import pytest

from hub.course import SPANS, course
from hub.minutes import MINUTE_NS, minute, together
from hub.overview import CHUNK_NS, Overview
from hub.retention import sweep
from hub.store import Store
from lineside.clock import NS, SimulatedClock
from lineside.messages import Score
from lineside.plant import KeepDays
from tests.test_store import kept, score

NOW_S = 40 * 86_400
DEVICE = "press-3"


def said(seconds: range) -> list[Score]:
    return [
        msgspec.structs.replace(score(t, p_value=0.001 if t % 600 == 0 else 0.5), agreements={"cam0+mic0": 0.8})
        for t in seconds
    ]


def overview(store: Store) -> Overview:
    return Overview(store, lambda: [DEVICE], SimulatedClock(NOW_S * NS))


def everything(made: Overview, store: Store) -> None:
    for _ in range(100):
        if not made.bring(DEVICE, 0, NOW_S * NS):
            break
    else:
        pytest.fail("the overview finds no end")


def test_minutes_are_those_of_the_scores_whatever_came_when(store: Store) -> None:
    early, late = said(range(NOW_S - 9000, NOW_S - 5000)), said(range(NOW_S - 4000, NOW_S))
    missing = [early.pop(1000), early.pop(1000)]
    for part, seq in ((late, 1), (early, 5000)):
        store.add([kept(each, seq + n, received_ns=NOW_S * NS) for n, each in enumerate(part)])
        everything(made := overview(store), store)
    store.add([kept(each, 20_000 + n, received_ns=NOW_S * NS) for n, each in enumerate(missing)])
    everything(made, store)
    expected = together(minute(each) for each in [*early, *late, *missing])
    found = {each.place: each for each in made.minutes(DEVICE, 0, NOW_S * NS)}
    assert found == expected


def test_the_newest_minutes_come_first_and_gaps_are_leapt_over(store: Store) -> None:
    old, new = said(range(NOW_S - 20 * 86_400, NOW_S - 20 * 86_400 + 120)), said(range(NOW_S - 120, NOW_S))
    store.add([kept(each, n, received_ns=NOW_S * NS) for n, each in enumerate([*old, *new], start=1)])
    made = overview(store)
    made.bring(DEVICE, NOW_S * NS, NOW_S * NS)
    assert {each.start_ns for each in made.minutes(DEVICE, 0, NOW_S * NS)} >= {NOW_S * NS - MINUTE_NS}
    rounds = 1
    while made.bring(DEVICE, NOW_S * NS, NOW_S * NS):
        rounds += 1
    assert rounds <= 3 < 20 * 86_400 * NS // CHUNK_NS
    assert sum(each.scores for each in made.minutes(DEVICE, 0, NOW_S * NS)) == 240


def test_scores_that_went_are_not_counted_twice(store: Store) -> None:
    scores = said(range(NOW_S - 3600, NOW_S))
    half = len(scores) // 2 + 17  # within a minute
    received = [NOW_S * NS - 2 * 86_400 * NS] * half + [NOW_S * NS] * (len(scores) - half)
    store.add([kept(each, n, received_ns=received[n - 1]) for n, each in enumerate(scores, start=1)])
    everything(made := overview(store), store)
    sweep(store, KeepDays(score=1), NOW_S * NS, lambda: False)
    assert store.counts()["scores"] == len(scores) - half
    shown = course(store, made, DEVICE, SPANS["8h"], NOW_S * NS)
    assert sum(point.scores for point in shown) in range(len(scores) - 60, len(scores) + 1)


@pytest.mark.parametrize("name", SPANS)
def test_a_span_has_few_points_and_none_of_its_worst_moments_is_lost(store: Store, name: str) -> None:
    store.add([kept(each, n, received_ns=NOW_S * NS) for n, each in enumerate(said(range(NOW_S - 7200, NOW_S)), 1)])
    everything(made := overview(store), store)
    span = SPANS[name]
    shown = course(store, made, DEVICE, span, NOW_S * NS)
    assert 1 <= len(shown) <= span.points <= 700
    assert [point.start_ns for point in shown] == sorted({point.start_ns for point in shown})
    assert sum(point.scores for point in shown) == min(7200, span.seconds)
    worst = sum(point.p_value == 0.001 for point in shown)
    assert worst == max(1, min(12, span.seconds // 600, -(-7200 // span.step_s)))
    assert {point.limit for point in shown} == {0.01}
    assert shown[-1].agreements["cam0+mic0"].mean == pytest.approx(0.8)


def test_a_long_span_reads_minutes_only(store: Store) -> None:
    store.add([kept(each, n, received_ns=NOW_S * NS) for n, each in enumerate(said(range(NOW_S - 3000, NOW_S)), 1)])
    everything(made := overview(store), store)
    scores: list[int] = []
    asked = store.scores
    store.scores = lambda *args: scores.append(args[1]) or asked(*args)  # type: ignore[method-assign,func-returns-value]
    course(store, made, DEVICE, SPANS["30d"], NOW_S * NS)
    assert scores[0] >= (NOW_S - 180) * NS
