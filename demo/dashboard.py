"""What the dashboard knows, read through its API: the demo believes nothing else."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

from lineside.errors import LinesideError

T = TypeVar("T")


class Dashboard:
    """The hub's read API on loopback."""

    def __init__(self, port: int, healthy: Callable[[], str]) -> None:
        self._base = f"http://127.0.0.1:{port}"
        self._healthy = healthy

    def get(self, path: str, **query: str | int) -> Any:
        """One answer of the API. Raises LinesideError when the hub does not answer."""
        words = "&".join(f"{key}={value}" for key, value in query.items())
        try:
            with urllib.request.urlopen(f"{self._base}{path}?{words}", timeout=5) as answer:
                return json.loads(answer.read())
        except (urllib.error.URLError, OSError) as error:
            raise LinesideError(path, f"the hub does not answer ({error})", "see hub-run.log") from error

    def wait(self, what: str, seconds: float, look: Callable[[], T | None]) -> T:
        """Look again and again until something is seen. Raises LinesideError naming what did not come."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if problem := self._healthy():
                raise LinesideError(what, problem, "see the logs in the demo's folder")
            try:
                if seen := look():
                    return seen
            except LinesideError as error:
                if time.monotonic() + 1 > end:
                    raise error
            time.sleep(0.2)
        raise LinesideError(what, f"did not come within {seconds:g} s", "see the logs in the demo's folder")

    def device(self, name: str) -> dict[str, Any]:
        """What is known of one device."""
        known: dict[str, Any] = self.get("/api/status")["devices"].get(name, {})
        return known

    def alarms(self, since_ns: int) -> list[dict[str, Any]]:
        """Alarms whose onset or change is not before `since_ns`."""
        found: list[dict[str, Any]] = self.get("/api/alarms", since_ns=since_ns)
        return found
