"""A small plant through the whole of bench.rollout: three rings, who was away catches up, a bad version is aborted."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.rollout import Asked, Simulation, table
from lineside.clock import SystemClock


@pytest.mark.slow
def test_twenty_devices_roll_through_the_rings(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, Asked(20, away=2, failing=2, canary=3, kilobytes=8, phase_s=0.2), SystemClock())
    simulation.run()
    parts = {one.what: one for one in simulation.parts}
    assert sum(one.devices for what, one in parts.items() if what.startswith("ring ")) == 20
    assert parts["offline devices come and catch up"].devices == 2
    assert parts["all rings"].requests >= 18 * 3
    assert "2 devices were offline at the end of the rollout" in simulation.notes
    assert any(note.startswith("the bad version was aborted: 2 of 20 devices failed") for note in simulation.notes)
    assert table(simulation.parts).count("\n") == len(simulation.parts) + 1
