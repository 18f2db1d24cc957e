"""Starts the `lineside` commands of the demo and stops them again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from lineside.errors import GateError, LinesideError

STOP_S = 15.0


class Processes:
    """Commands run to their end (`call`) or left running until `stop` (`start`); their output goes to log files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []

    def call(self, *words: str, judged: bool = True) -> dict[str, Any]:
        """Run `lineside WORDS --json` and give what it printed. Raises LinesideError with its own last line.

        A failed gate is such an error too, unless the caller has `judged = False`: to judge the gates itself.
        """
        name = "-".join(words[:2])
        with (self._folder / f"{name}.log").open("ab") as log:
            done = subprocess.run([*_lineside(), *words, "--json"], stdout=subprocess.PIPE, stderr=log, check=False)
        if done.returncode and (judged or done.returncode != GateError.exit_code):
            raise LinesideError(f"lineside {' '.join(words)}", self._last_line(name), f"see {self._folder}/{name}.log")
        last = done.stdout.decode().strip().splitlines()[-1]
        answer: dict[str, Any] = json.loads(last)
        return answer

    def start(self, *words: str) -> None:
        """Start a `lineside` command that goes on."""
        with (self._folder / f"{'-'.join(words[:2])}.log").open("ab") as log:
            self._running.append(subprocess.Popen([*_lineside(), *words], stdout=log, stderr=log))

    def ended(self) -> str:
        """Name and exit code of a command that should still run but does not; empty while all do."""
        for process in self._running:
            if process.poll() is not None:
                words = " ".join(str(word) for word in list(process.args)[-4:])  # type: ignore[arg-type]
                return f"{words} ended with {process.returncode}"
        return ""

    def stop(self) -> None:
        """Stop what runs, last started first."""
        for process in reversed(self._running):
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def _last_line(self, name: str) -> str:
        lines = (self._folder / f"{name}.log").read_text(errors="replace").splitlines()
        words = [line.strip("\r │") for line in lines if any(letter.isalnum() for letter in line)]
        return words[-1] if words else "failed without a word"


def _lineside() -> list[str]:
    return [sys.executable, "-m", "lineside"]
