"""Work that a hub does beside all else: in a thread of its own, again and again, until it is stopped."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod

from sqlalchemy.exc import SQLAlchemyError

from hub.trouble import trouble

LOG = logging.getLogger(__name__)
AGAIN_S = 5.0


class Chore(ABC):
    """A database that is locked or away delays it; anything else that goes wrong is the chore's own to tell."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)

    @abstractmethod
    def turn(self) -> float:
        """Do what is due now; seconds until it is to be done again. Raises SQLAlchemyError."""

    def start(self) -> None:
        """Begin in the background."""
        self._thread.start()

    def stop(self) -> None:
        """End after the turn that is under way. May be called twice, and where it was never started."""
        self.stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def _name(self) -> str:
        return type(self).__name__.lower()

    def _run(self) -> None:
        while not self.stopping.is_set():
            try:
                pause_s = self.turn()
            except SQLAlchemyError as error:
                LOG.error("%s goes on later (%s): %s", self._name, trouble(error), error)
                pause_s = AGAIN_S
            self.stopping.wait(pause_s)
