"""The table: what is cut, and what must hold."""

from __future__ import annotations

from tests.powercut import device, device_state, plant
from tests.powercut.table import Row

ROWS: tuple[Row, ...] = (*device.ROWS, *device_state.ROWS, *plant.ROWS)
