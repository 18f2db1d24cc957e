"""A web server that gives ranges, counts what it sends, and can be told to cut, dawdle or lie."""

from __future__ import annotations

import http.server
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Manners:
    """How the server answers: it hangs up after `cut_after` bytes of a body, sends `trickle` bytes and then waits.

    With `reset` it hangs up as a machine that loses its power or route does: what it has not got out yet is lost, some
    32 kB of what counts as sent here.
    """

    ranges: bool = True
    cut_after: int = 0
    reset: bool = False
    trickle: int = 0
    pause_s: float = 0.0
    shift: int = 0  # by which a range begins elsewhere than asked, and says so


@dataclass
class RangeServer:
    """Serves `folder`; `sent` counts the bytes of bodies, `ranges` what was asked for."""

    folder: Path
    manners: Manners = field(default_factory=Manners)
    sent: int = 0
    ranges: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        path = self.folder / handler.path.lstrip("/")
        if not path.is_file():
            handler.send_error(404)
            return
        data, asked = path.read_bytes(), re.match(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        self.ranges.append(handler.headers.get("Range", ""))
        start = int(asked[1]) if asked and self.manners.ranges else 0
        if start >= len(data) > 0:
            handler.send_error(416)
            return
        start += self.manners.shift if start else 0
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(data) - start))
        handler.end_headers()
        self._send(handler, data[start:])

    def _send(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        if self.manners.reset:
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)  # Linux doubles it
        cut, step = self.manners.cut_after or len(body), self.manners.trickle or 16_384
        try:
            for at in range(0, min(cut, len(body)), step):
                part = body[at : min(at + step, cut)]
                self.sent += len(part)
                handler.wfile.write(part)
                time.sleep(self.manners.pause_s)
        except OSError:
            handler.close_connection = True
        if cut < len(body):
            handler.close_connection = True
            if self.manners.reset:
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                handler.connection.close()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
