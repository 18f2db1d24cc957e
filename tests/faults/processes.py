"""Processes that are killed, stopped and restarted."""

from __future__ import annotations

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

from tests.faults.plant import Plant, running
from tests.faults.table import Fault, Found
from tests.line_broker import wait

SPLIT = {"uplink"}


def killed(part: str, folder: Path, strikes: int) -> Found:
    """kill -9 at random points, again and again."""
    chance, slowest = random.Random(part), 0.0
    with running(folder, split=part in SPLIT) as plant:
        for _ in range(strikes):
            time.sleep(chance.uniform(0.0, 1.5))
            os.kill(plant.pid(part), signal.SIGKILL)
            restart(plant, part)
            if chance.random() < 0.25 or strikes < 5:  # else it is struck again before it is back
                back_s = plant.back_s(20)
                if back_s is None:
                    return Found(broken=f"{part} was not back after 35 s", told=f"{strikes} kills")
                slowest = max(slowest, back_s)
        back_s = plant.back_s(20)
        lost, duplicated = plant.account()
    return Found(lost, duplicated, back_s and max(slowest, back_s), f"{strikes} kills at random points")


def restart(plant: Plant, part: str) -> None:
    """What systemd would do; a capture process is the agent's own to restart."""
    if part == "broker":
        plant.broker.stop()
        plant.broker.start()
    elif part != "capture":
        plant.processes[part].wait()
        plant.start(part)


def stopped(part: str, seconds: float, folder: Path, strikes: int) -> Found:
    """SIGSTOP for a while: the process is there and does nothing."""
    with running(folder) as plant:
        pid = plant.pid(part)
        os.kill(pid, signal.SIGSTOP)
        if part == "capture":
            if not wait(lambda: not Path(f"/proc/{pid}").exists(), seconds):
                return Found(broken="the capture process was not killed")
        else:
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)
        back_s = plant.back_s(20)
        lost, duplicated = plant.account()
    return Found(lost, duplicated, back_s, f"{seconds:g} s" if part != "capture" else "killed by the agent")


def broker_restarted(folder: Path, strikes: int) -> Found:
    """The broker ends in order, is away for three seconds, and comes back without anything it knew."""
    with running(folder) as plant:
        plant.broker.stop()
        time.sleep(3)
        plant.broker.start()
        back_s = plant.back_s(20)
        lost, duplicated = plant.account()
    return Found(lost, duplicated, back_s)


def terminated(folder: Path, strikes: int) -> Found:
    """systemctl restart of the agent."""
    with running(folder) as plant:
        plant.end("agent")
        plant.start("agent")
        back_s = plant.back_s(20)
        lost, duplicated = plant.account()
    return Found(lost, duplicated, back_s)


NOTHING = "nothing accepted is lost or twice at the hub"
ROWS = (
    Fault("agent killed", NOTHING, partial(killed, "agent"), 15, 40),
    Fault("uplink process killed", NOTHING, partial(killed, "uplink"), 15, 40),
    Fault("capture process killed", f"{NOTHING}; the other sensor scores on", partial(killed, "capture"), 10, 40),
    Fault(
        "broker killed", f"{NOTHING}, though the broker loses what it acknowledged", partial(killed, "broker"), 25, 40
    ),
    Fault("hub killed", NOTHING, partial(killed, "hub"), 20, 40),
    Fault("agent restarted in order", NOTHING, terminated, 15),
    Fault("broker restarted", NOTHING, broker_restarted, 25),
    Fault("agent stopped (SIGSTOP)", NOTHING, partial(stopped, "agent", 6.0), 15),
    Fault("hub stopped (SIGSTOP)", NOTHING, partial(stopped, "hub", 6.0), 15),
    Fault("broker stopped (SIGSTOP)", NOTHING, partial(stopped, "broker", 6.0), 25),
    Fault("capture process hangs (SIGSTOP)", "it is killed and begun again", partial(stopped, "capture", 10.0), 10),
)
