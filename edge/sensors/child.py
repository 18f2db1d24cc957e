"""A capture process: one sensor, read until it fails, ends, or the agent is gone. `python -m edge.sensors.child`.

It is killed without asking when nothing comes from it: whatever hangs in a driver hangs here.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from edge.framing import receive, send
from edge.sensors.shared import DECODER, MEMORY_BYTES, Begin, Ended, Failed, Writer
from edge.sensors.table import open_sensor
from lineside.clock import SystemClock
from lineside.errors import SensorError


def main() -> None:
    """Begin as told on the socket that the two arguments, descriptors of memory and socket, name."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too, but the agent decides
    memory = mmap.mmap(int(sys.argv[1]), MEMORY_BYTES)
    link = socket.socket(fileno=int(sys.argv[2]))
    begin = receive(link, DECODER)
    assert isinstance(begin, Begin)
    writer = Writer(memory, link)
    threading.Thread(target=_credits, args=(link, writer), name="credits", daemon=True).start()
    try:
        sensor = open_sensor(begin.settings, SystemClock(begin.offset_ns), begin.origin_ns, Path(begin.base))
        for samples in sensor.samples():
            writer.put(samples, sensor.dropped)
        send(link, Ended())
    except SensorError as error:
        send(link, Failed(error.reason, error.mend))


def _credits(link: socket.socket, writer: Writer) -> None:
    """Hear which runs were taken; without an agent there is nobody to capture for."""
    try:
        while credits := link.recv(4096):
            writer.credited(len(credits))
    finally:
        os._exit(0)


if __name__ == "__main__":
    code = 0
    try:
        main()
    except OSError:
        pass  # the agent is gone
    except Exception:
        logging.exception("a capture process failed")
        code = 1
    sys.stderr.flush()
    os._exit(code)  # a thread that hangs in a driver would keep an ordinary exit waiting
