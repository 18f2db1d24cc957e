"""Sensors for a machine that has none, read as real ones are: a camera over HTTP and a microphone that ALSA gives."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

PART = b"--F\r\nContent-Type: image/jpeg\r\n\r\n"
SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ of Linux, which Python 3.10 does not name everywhere
SILENCE_S = 100
SOUND_HZ = 16_000


def jpegs(pictures: Sequence[NDArray[np.uint8]]) -> list[bytes]:
    """RGB pictures (H, W, 3) as JPEG."""
    return [cv2.imencode(".jpg", picture[:, :, ::-1])[1].tobytes() for picture in pictures]


class CameraServer:
    """JPEGs in turn as MJPEG over HTTP, at most `rate_hz`; unplugged while `off`, `stuck` while it gives nothing."""

    def __init__(self, frames: Sequence[bytes], rate_hz: float = 10.0) -> None:
        self.off = self.stuck = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(503 if outer.off else 200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=F")
                self.end_headers()
                number = 0
                with contextlib.suppress(OSError):
                    while not outer.off:
                        if not outer.stuck:
                            self.wfile.write(PART + frames[number % len(frames)] + b"\r\n")
                            number += 1
                        time.sleep(1 / rate_hz)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.port = self._server.server_address[1]

    def close(self) -> None:
        """Give no more."""
        self.off = True
        self._server.shutdown()
        self._server.server_close()


def fifo_microphone(folder: Path, sound: NDArray[np.int16], block: int) -> dict[str, str]:
    """An ALSA device `filemic` that gives `sound`, then silence, in real time; blocks are those of the reader.

    Gives the environment in which PortAudio finds it. ALSA's file plug-in takes a short read as it is, so the feeder
    writes in the reader's own block size.
    """
    conf = (
        "</usr/share/alsa/alsa.conf>\npcm.filemic { type file slave.pcm { type null } file /dev/null "
        f'infile "{folder}/mic.fifo" format raw hint {{ show on description "file microphone" }} }}\n'
    )
    (folder / "asound.conf").write_text(conf)
    os.mkfifo(folder / "mic.fifo")
    pipe = os.open(folder / "mic.fifo", os.O_RDWR)  # never blocks, and PortAudio's probing does not end it
    fcntl.fcntl(pipe, SET_PIPE_SIZE, 8_192)  # little may wait, so that time is real

    def feed() -> None:
        data, begun = sound.tobytes() + bytes(2 * SILENCE_S * SOUND_HZ), time.perf_counter()
        for k in range(len(data) // (2 * block)):
            time.sleep(max(0.0, begun + k * block / SOUND_HZ - time.perf_counter()))
            os.write(pipe, data[2 * block * k : 2 * block * (k + 1)])

    threading.Thread(target=feed, daemon=True).start()
    return {"ALSA_CONFIG_PATH": str(folder / "asound.conf"), "HOME": str(folder)}
