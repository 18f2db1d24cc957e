"""The table: what strikes a device on the floor, and what must hold."""

from __future__ import annotations

from tests.faults import network, processes, sensors, storage
from tests.faults.table import Fault

ROWS: tuple[Fault, ...] = (*processes.ROWS, *sensors.ROWS, *storage.ROWS, *network.ROWS)
