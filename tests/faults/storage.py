"""Disks that are full and files that are damaged."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from edge.slots import Slots
from lineside.clock import SystemClock
from lineside.files import sha256
from tests.faults.plant import Plant, running
from tests.faults.table import Fault, Found
from tests.line_device import DATA

PAGE = 4096


class Unavailable(Exception):
    """This machine does not let us do it; the row is then not run, and says so."""


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own, in memory."""
    place = folder / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", place], capture_output=True, check=False
    )
    if done.returncode:
        raise Unavailable(f"no file system can be mounted here ({done.stderr.decode().strip()})")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def full(folder: Path, strikes: int) -> Found:
    """The disk of the state folder is full for eight seconds."""
    with small_disk(folder, 24) as disk, running(folder / "plant", state=disk / "state") as plant:
        filler = disk / "filler"
        # Unbuffered: what a buffer still held would be tried once more, and refused, where the file is closed.
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(64 * 1024))
        time.sleep(8)
        alive = plant.processes["agent"].poll() is None
        filler.unlink()
        back_s = plant.back_s(20)
        lost, duplicated = plant.account()
    return Found(lost, duplicated, back_s, broken="" if alive else "the agent ended")


def damaged(running_on: bool, folder: Path, strikes: int) -> Found:
    """Pages of the outbox's file are overwritten while messages wait in it."""
    chance = random.Random(7)
    with running(folder) as plant:
        plant.broker.stop()
        time.sleep(8)
        if not running_on:
            plant.end("agent")
        spoil(plant.state / "outbox.db", chance)
        if running_on:
            time.sleep(3)
        else:
            plant.start("agent")
        plant.broker.start()
        back_s = plant.back_s(30)
        lost, duplicated = plant.account()
    return Found(lost, duplicated, back_s, "what could not be read is declared")


def spoil(path: Path, chance: random.Random) -> None:
    """Overwrite two pages of a file, not the first."""
    pages = max(2, path.stat().st_size // PAGE)
    with path.open("r+b") as file:
        for _ in range(2):
            file.seek(chance.randrange(1, pages) * PAGE)
            file.write(chance.randbytes(PAGE))
        os.fsync(file.fileno())


def cut(name: str, folder: Path, strikes: int) -> Found:
    """A file of the state folder is cut in the middle while the agent is down."""
    with running(folder) as plant:
        plant.end("agent")
        file = plant.state / name
        os.truncate(file, file.stat().st_size // 2)
        plant.start("agent")
        back_s = plant.back_s(20)
        lost, duplicated = plant.account()
    return Found(lost, duplicated, back_s)


def encoder(folder: Path, strikes: int) -> Found:
    """The encoder in use is damaged on disk; the other slot holds one that was accepted before."""
    with running(folder) as plant:
        plant.end("agent")
        damage(plant)
        plant.start("agent")
        back_s = plant.back_s(20)
        lost, duplicated = plant.account()
    return Found(lost, duplicated, back_s)


def damage(plant: Plant) -> None:
    """Install version 1 once more, so that both slots hold it, and damage the one in use."""
    slots = Slots(plant.state, SystemClock())
    data = (DATA / "camera-1.onnx").read_bytes()
    slots.stage("camera", data, version=1, expected_sha256=sha256(data), target="models/camera/camera-1.onnx")
    used = slots.switch("camera")
    used.path.write_bytes(data[: len(data) // 2])


ROWS = (
    Fault("disk of the state folder full", "judging goes on; nothing stored is lost, the rest is declared", full, 20),
    Fault(
        "pages of the outbox damaged, agent down",
        "what can be read is delivered, the rest is declared",
        partial(damaged, False),
        30,
    ),
    Fault(
        "pages of the outbox damaged, agent running",
        "what can be read is delivered, the rest is declared",
        partial(damaged, True),
        30,
    ),
    Fault(
        "what the monitor gathered cut",
        "told in the log; watched for from the beginning",
        partial(cut, "monitor.npz"),
        15,
    ),
    Fault("encoder in use damaged on disk", "the accepted one of the other slot stands in", encoder, 15),
)
