"""The hub's ingest and store as a process: `python -m tests.faults.hub PLANT_FOLDER`; ends with SIGTERM."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path

import msgspec

from hub.ingest import Ingest
from hub.store import Store, database_url
from lineside.clock import SystemClock
from lineside.plant import PlantConfig


def main(folder: Path) -> None:
    """Listen and store until told to end."""
    plant = msgspec.json.decode((folder / "plant.json").read_bytes(), type=PlantConfig)
    store = Store(database_url("sqlite:///hub.db", folder))
    ingest = Ingest(plant.site, plant.connection("hub"), folder, store, clock=SystemClock())
    ingest.start()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    while not stop.wait(0.2):
        pass
    ingest.stop()
    store.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main(Path(sys.argv[1]))
