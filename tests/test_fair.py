"""The queue between the broker and the store: bounded, in turns, and nobody starves."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from hub.fair import FairQueue


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=60), st.integers(1, 9))
def test_each_device_keeps_its_order_and_nothing_is_lost(devices: list[str], most: int) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue(100)
    for number, device in enumerate(devices):
        queue.put(device, (device, number))
    taken: list[tuple[str, int]] = []
    while batch := queue.take(most, wait_s=0):
        assert len(batch) <= most
        taken += batch
    assert sorted(taken, key=lambda each: each[1]) == [(device, number) for number, device in enumerate(devices)]
    for device in set(devices):
        numbers = [number for name, number in taken if name == device]
        assert numbers == sorted(numbers)


def test_a_flood_takes_its_share_and_the_others_are_served_between() -> None:
    queue: FairQueue[str] = FairQueue(100)
    sent = turned_away = 0
    for _ in range(5):
        for _ in range(100):
            if queue.answer("flood") == "room":
                queue.put("flood", "flood")
                sent += 1
            else:
                turned_away += 1
        assert queue.answer("quiet") != "away"
        batch = queue.take(20, wait_s=0)
        queue.put("quiet", "quiet")
        assert queue.take(2, wait_s=0) == ["flood", "quiet"]
        assert len(batch) == 20
    assert (sent, turned_away) == (100 + 4 * 21, 500 - 184)


def test_two_floods_share_the_places() -> None:
    queue: FairQueue[str] = FairQueue(10)
    for device in ("a", "b") * 5:
        queue.put(device, device)
    assert (queue.answer("a"), queue.answer("b"), queue.answer("c")) == ("away", "away", "wait")


def test_where_nobody_floods_all_wait() -> None:
    queue: FairQueue[str] = FairQueue(12)
    for device in ("a", "b", "c", "d") * 3:
        queue.put(device, device)
    assert {queue.answer(device) for device in "abcde"} == {"wait"}
    queue.take(3, wait_s=0)
    for _ in range(3):
        queue.put("d", "d")
    assert [queue.answer(device) for device in "abcd"] == ["wait", "wait", "wait", "away"]


def test_a_batch_is_waited_for_and_comes_as_soon_as_it_is_full() -> None:
    queue: FairQueue[int] = FairQueue(1000)
    batches: list[list[int]] = []
    reader = threading.Thread(target=lambda: batches.append(queue.take(50, wait_s=60, gather_s=60)))
    reader.start()
    for number in range(50):
        queue.put("d", number)
    reader.join(30)
    assert batches == [list(range(50))]
    assert queue.take(50, wait_s=0.01) == []
