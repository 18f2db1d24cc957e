"""`lineside` commands in children: parts do not import each other, and a long training leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answer:
    """How a command ended: its exit code (below 0: the signal), the JSON that it printed, its last line of stderr."""

    code: int
    printed: Any
    said: str

    @property
    def told(self) -> dict[str, Any]:
        """What it printed, where that is an object."""
        return self.printed if isinstance(self.printed, dict) else {}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What it printed, where that is a list of objects."""
        return [row for row in self.printed if isinstance(row, dict)] if isinstance(self.printed, list) else []


Call = Callable[[Sequence[str], Path], Answer]  # the words after `lineside`, and the file that takes its stderr


def call(words: Sequence[str], log: Path) -> Answer:
    """Run `lineside WORDS --json` to its end; it holds the locks of this process that are meant for children."""
    with log.open("a+b") as file:
        begin = file.tell()
        command = [sys.executable, "-m", "lineside", *words, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=file, check=False, close_fds=False)
        file.seek(begin)
        lines = [line.strip("\r │") for line in file.read().decode(errors="replace").splitlines()]
    told = [line for line in lines if any(letter.isalnum() for letter in line)]
    printed = done.stdout.decode().strip().splitlines()
    ended = f"{' '.join(words[:2])} ended with {done.returncode} without a word"
    said = (told[-1].removeprefix("lineside: ") if told else ended) if done.returncode else ""
    return Answer(done.returncode, _json(printed[-1]) if printed else None, said)


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
