"""`./run demo`: the loop of recording, training, export, release, watching, alarms and rollback on one machine."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from demo.steps import Loop, free_port, fresh
from lineside.errors import LinesideError, PortInUseError

FOLDER = Path(__file__).resolve().parent.parent / "var" / "demo"


def main() -> int:
    """Run the demo; the exit code is 0 only when every step held."""
    asked = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    port = asked.port or (free_port() if asked.once else 8080)
    if not _is_free(port):
        error = PortInUseError(f"port {port}", "somebody else listens there", "choose another with --port")
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    source = asked.recording.resolve() if asked.recording else None
    if source is not None and source.is_relative_to(asked.folder.resolve()):
        print(f"demo: {source}: lies in {asked.folder}, which is made anew; move it elsewhere", file=sys.stderr)
        return 1
    try:
        loop = Loop(fresh(asked.folder), port, source, asked.live)
    except LinesideError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    try:
        return _once(loop) if asked.once else _stay(loop, port)
    except KeyboardInterrupt:
        return 130
    finally:
        loop.stop()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="headless: check all steps, print one JSON line, stop")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--live", action="store_true", help="use this computer's camera and microphone")
    source.add_argument("--recording", type=Path, help="use this video, folder of frames with a sound file, or MCAP")
    parser.add_argument("--port", type=int, default=0, help="port of the dashboard (8080; with --once any free one)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where everything is kept (made anew)")
    return parser.parse_args()


def _once(loop: Loop) -> int:
    failed = ""
    for number, (title, step) in enumerate(_steps(loop), start=1):
        failed = _show(number, title, step)
        if failed:
            break
    print(json.dumps({"ok": not failed, "failed": failed, **loop.measured}))
    return 1 if failed else 0


def _stay(loop: Loop, port: int) -> int:
    """All steps; then everything is left running for the person at the dashboard."""
    for number, (title, step) in enumerate(_steps(loop), start=1):
        if _show(number, title, step):
            return 1
        if number == 4:
            print(f"\n  dashboard: http://localhost:{port}   (faults follow by themselves)\n", file=sys.stderr)
    print(f"\n  all six steps held. The line runs on: http://localhost:{port}   (Ctrl-C ends it)\n", file=sys.stderr)
    try:
        while not loop.processes.ended():
            time.sleep(1)
    except KeyboardInterrupt:
        return 0
    print(f"demo: {loop.processes.ended()}", file=sys.stderr)
    return 1


def _steps(loop: Loop) -> list[tuple[str, Callable[[], None]]]:
    return [
        ("record the line", loop.record),
        ("train two stages", loop.train),
        ("export, sign, publish", loop.export),
        ("watch the line", loop.watch),
        ("faults and their alarms", loop.fault),
        ("roll a camera encoder out and back", loop.change),
    ]


def _show(number: int, title: str, step: Callable[[], None]) -> str:
    """Run one step with the seconds counting on a terminal; what went wrong, or nothing."""
    began, done = time.monotonic(), threading.Event()
    ticker = threading.Thread(target=_tick, args=(f"{number}/6 {title}", began, done), daemon=True)
    ticker.start()
    failed = ""
    try:
        step()
    except LinesideError as error:
        failed = f"step {number}: {error}"
    except Exception as error:  # noqa: BLE001  the top of the process: the JSON line must come whatever happened
        traceback.print_exc()
        failed = f"step {number}: {type(error).__name__}: {error}"
    done.set()
    ticker.join()
    end = "failed" if failed else "done"
    print(f"\r{number}/6 {title} … {end} in {time.monotonic() - began:.1f} s", file=sys.stderr)
    if failed:
        print(f"demo: {failed}", file=sys.stderr)
    return failed


def _tick(title: str, began: float, done: threading.Event) -> None:
    while sys.stderr.isatty() and not done.wait(0.2):
        print(f"\r{title} … {time.monotonic() - began:.0f} s ", end="", file=sys.stderr, flush=True)


def _is_free(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
