"""The batches of a stage: in order, one ahead, and what goes wrong in making one reaches who learns from it."""

from __future__ import annotations

import pytest

from trainer import loop


def test_a_batch_is_made_while_the_one_before_it_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def make(course: str, step: int) -> tuple[str, int]:
        if step == 6:
            raise ValueError("no such row")
        made.append(step)
        return course, step

    monkeypatch.setattr(loop, "batch_of", make)
    assert list(loop.ahead("course", range(2, 5))) == [("course", 2), ("course", 3), ("course", 4)]
    assert list(loop.ahead("course", range(0))) == []
    made.clear()
    batches = loop.ahead("course", range(3, 9))
    assert next(batches) == ("course", 3)
    assert set(made) <= {3, 4}  # one ahead, no more
    assert [next(batches), next(batches)] == [("course", 4), ("course", 5)]
    with pytest.raises(ValueError, match="no such row"):
        next(batches)
    assert made == [3, 4, 5, *([7] if 7 in made else [])]
