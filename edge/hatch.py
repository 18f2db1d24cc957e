"""The agent's only door when it runs without a network: a Unix socket at which the uplink process asks for messages.

The agent keeps the outbox, the requests and all verification; the uplink process holds no state and may be killed at
any time. Nothing that it does can hold the agent up: each connection has its own thread, each frame a time limit.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sqlite3
import threading
from collections.abc import Callable, Generator
from pathlib import Path

from tuf.api.exceptions import DownloadError, DownloadHTTPError

from edge import frames
from edge.frames import Channel
from edge.outbox import Outbox, Waiting
from edge.requests import Requests
from lineside import wire
from lineside.clock import NS, Clock
from lineside.errors import ConfigError, PortInUseError, WireError
from lineside.messages import Command, Piece, StationState

log = logging.getLogger(__name__)
HEARTBEAT_S = 2.0
PATIENCE_S = 10.0
SILENCE_S = 20.0  # of a fetch; the uplink itself gives up a server after 15
REUNION_S = 3.0
CONNECTIONS = 12
MEND = "start lineside-uplink (`lineside edge uplink --config device.toml --socket {}`)"


class Hatch:
    """In the agent's process, in the place of `Uplink`; `on_command`, `on_state`, `piece` as there, `page` of Pages."""

    def __init__(
        self,
        path: Path,
        device: str,
        outbox: Outbox,
        clock: Clock,
        on_command: Callable[[Command], None],
        on_state: Callable[[StationState], None],
        page: Callable[[str, str], tuple[int, str, bytes]],
        piece: Callable[[], Piece | None] = lambda: None,
    ) -> None:
        self._page, self._piece = page, piece
        self.path, self._device, self._outbox, self._clock = path, device, outbox, clock
        self._on_command, self._on_state = on_command, on_state
        self.refused = 0
        self._asked_ns = self._refused_ns = clock.now_ns()
        self._refusal = ""
        self._requests = Requests()
        self._unsaid: dict[str, Command] = {}  # reports that no broker is known to have, the latest of each request
        self._lock = threading.RLock()
        self._came = threading.Condition(self._lock)
        self._peers: dict[frames.Role, Channel] = {}
        self._borrowed: Channel | None = None
        self._news = threading.Event()
        self._parted = threading.Event()
        self._stop = threading.Event()
        self._room = threading.Semaphore(CONNECTIONS)
        self._socket = listen(path)
        self._thread = threading.Thread(target=self._accept, name="hatch", daemon=True)

    @property
    def problem(self) -> str:
        """Why nothing gets out, or what knocked that was not the uplink; empty while all is well."""
        now_ns = self._clock.now_ns()
        silent_s = (now_ns - self._asked_ns) / NS
        if self._refusal and now_ns - self._refused_ns < 60 * NS:
            return f"uplink: {self.refused} connections were refused, the last because {self._refusal}"
        if silent_s < PATIENCE_S:
            return ""
        if "outbox" not in self.here:
            return f"uplink: is not running, nobody is connected to {self.path}; {MEND.format(self.path)}"
        mend = "has it a broker? see `journalctl -u lineside-uplink`"
        return f"uplink: runs, but has asked for nothing for {silent_s:.0f} s; {mend}"

    @property
    def here(self) -> frozenset[frames.Role]:
        """The connections that there are."""
        with self._lock:
            return frozenset(self._peers)

    def start(self) -> None:
        """Let the uplink in."""
        self._thread.start()

    def stop(self) -> None:
        """Say farewell and close; the socket's file is removed."""
        self._stop.set()
        self._news.set()
        with contextlib.suppress(OSError):  # wakes `accept`
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        self.path.unlink(missing_ok=True)
        with self._lock:
            peers = dict(self._peers)
        if "news" in peers:
            self._parted.wait(frames.PATIENCE_S)
        for channel in peers.values():
            channel.close()

    def wake(self) -> None:
        """Tell that the outbox has something new."""
        self._news.set()

    def report(self, command: Command) -> None:
        """Have a command's progress published, in place of the request."""
        with self._lock:
            self._requests.said(command)
            self._unsaid[command.id] = command
        self._news.set()

    def parts(self, url: str, offset: int = 0) -> Generator[tuple[int, bytes], None, None]:
        """A file of the repository, brought by the uplink; an edge.web.Source.

        One at a time: a file that was not read to its end is given up when the next one is asked for.
        """
        channel, whole = self._borrow(), False
        try:
            channel.send(frames.Get(url, offset))
            while isinstance(part := channel.receive(SILENCE_S), frames.Part):
                yield part.at, part.data
            whole = True
        except (OSError, EOFError, WireError) as error:
            raise DownloadError(f"the uplink went away while it fetched {url} ({error})") from error
        finally:
            self._give_back(channel, whole)
        if isinstance(part, frames.Failed):
            raise DownloadHTTPError(part.reason, part.status) if part.status else DownloadError(part.reason)

    def _borrow(self) -> Channel:
        with self._lock:
            if self._borrowed is not None:
                self._borrowed.close()
            if "outbox" in self._peers:  # the uplink is there, and comes back for files after one was given up
                self._came.wait_for(lambda: "fetch" in self._peers, REUNION_S)
            self._borrowed = self._peers.pop("fetch", None)
            if self._borrowed is None:
                raise DownloadError(f"the uplink is not running; {MEND.format(self.path)}")
            return self._borrowed

    def _give_back(self, channel: Channel, whole: bool) -> None:
        with self._lock:
            if self._borrowed is channel:
                self._borrowed = None
            if whole and "fetch" not in self._peers:
                self._peers["fetch"] = channel
            else:  # what is still on its way would be taken for the next file
                channel.close()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                self._stop.wait(0.1)  # too many descriptors just now, or `stop`
                continue
            if not self._room.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._receive, args=(connection,), name="hatch peer", daemon=True).start()

    def _receive(self, connection: socket.socket) -> None:
        """One connection, from its greeting to its end."""
        channel, role = Channel(connection, "uplink"), None
        try:
            role = self._greeted(channel)
            self._serve(role, channel)
        except WireError as error:
            self._refuse(str(error))
        except (OSError, EOFError) as error:
            log.info("uplink: a connection (%s) ended: %s", role, error)
        finally:
            self._room.release()
            if role != "fetch":  # that one waits for the updater
                self._leave(role, channel)

    def _greeted(self, channel: Channel) -> frames.Role:
        greeting = channel.receive(frames.PATIENCE_S)
        if not isinstance(greeting, frames.Greeting):
            raise WireError("greeting", f"{type(greeting).__name__} instead", "let only `lineside edge uplink` connect")
        told = (greeting.device, greeting.protocol)
        if told != (self._device, frames.PROTOCOL):
            reason = (
                f"the agent is {self._device!r} and speaks protocol {frames.PROTOCOL}, not {told[0]!r} and {told[1]}"
            )
            channel.send(frames.Failed(reason))
            raise WireError("greeting", reason, "give both halves the same device file and version")
        with self._lock:  # whoever was let in is among the peers: `stop` says farewell to it
            channel.send(frames.Done())
            before, self._peers[greeting.role] = self._peers.get(greeting.role), channel
            self._came.notify_all()
        if before is not None:  # an uplink that was killed or hangs; its successor is here
            before.close()
        return greeting.role

    def _leave(self, role: frames.Role | None, channel: Channel) -> None:
        channel.close()
        with self._lock:
            if role is not None and self._peers.get(role) is channel:
                del self._peers[role]

    def _refuse(self, reason: str) -> None:
        self.refused += 1
        self._refusal, self._refused_ns = reason, self._clock.now_ns()
        log.warning("uplink: %s", reason)

    def _serve(self, role: frames.Role, channel: Channel) -> None:
        if role == "news":
            try:
                self._tell(channel)
            finally:
                if self._stop.is_set():
                    self._parted.set()
        while role == "outbox":
            asked = channel.receive()
            self._asked_ns = self._clock.now_ns()
            channel.send(self._answer(asked))

    def _tell(self, channel: Channel) -> None:
        """Wake it, report what no broker has; also each HEARTBEAT_S, to show that the agent lives."""
        told: dict[str, Command] = {}
        while True:
            with self._lock:
                unsaid = dict(self._unsaid)
            for report in unsaid.values():
                if told.get(report.id) != report:
                    channel.send(frames.Report(report))
            told = unsaid
            if self._stop.is_set():
                channel.send(frames.Farewell())
                return
            channel.send(frames.Wake())
            self._news.wait(HEARTBEAT_S)
            self._news.clear()

    def _answer(self, asked: frames.Frame) -> frames.Frame:
        try:
            if isinstance(asked, frames.Places):
                return frames.Numbers(self._outbox.places(_limit(asked.limit), asked.lane))
            if isinstance(asked, frames.Pending):
                return frames.Rows(_fitting(self._outbox.pending(asked.after, _limit(asked.limit), asked.lane)))
            if isinstance(asked, frames.Forget):
                return frames.Done(self._outbox.forget(asked.epoch, asked.ranges))
        except (sqlite3.Error, OSError) as error:
            return frames.Failed(f"the agent's outbox: {error}")
        if isinstance(asked, (frames.Next, frames.Page)):
            return self._given(asked)
        if isinstance(asked, frames.Heard):
            self._take(asked.command)
        elif isinstance(asked, frames.Told):
            self._on_state(asked.state)
        elif isinstance(asked, frames.Said):
            with self._lock:
                if self._unsaid.get(asked.command.id) == asked.command:
                    del self._unsaid[asked.command.id]
        else:
            raise WireError("frame", f"{type(asked).__name__} asks nothing", "run one version on both sides")
        return frames.Done()

    def _given(self, asked: frames.Next | frames.Page) -> frames.Frame:
        if isinstance(asked, frames.Next):
            return frames.Carried(self._piece())
        return frames.Rendered(*self._page(asked.path, asked.accept))

    def _take(self, command: Command) -> None:
        """A request, which comes again from each new uplink process until its report is out."""
        with self._lock:
            said = self._requests.take(command)
        if said is None:
            self._on_command(command)
        elif said.status != "init":
            self.report(said)


def listen(path: Path) -> socket.socket:
    """A socket at `path` for this user and group (0660); one that a killed agent left behind is replaced.

    Raises PortInUseError where an agent listens already, ConfigError where there can be none.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and made.connect_ex(str(path)) == 0:
            raise PortInUseError(str(path), "another agent listens there", "stop it, or give --socket another path")
        path.unlink(missing_ok=True)
        made.bind(str(path))
        path.chmod(0o660)
        made.listen(CONNECTIONS)
    except OSError as error:
        made.close()
        mend = "give --socket a path of at most 107 characters in a folder that this user may write"
        raise ConfigError(str(path), f"no socket can be made there ({error})", mend) from error
    except PortInUseError:
        made.close()
        raise
    return made


def _limit(limit: int) -> int:
    return max(0, min(limit, 10_000))


def _fitting(rows: list[Waiting]) -> list[Waiting]:
    """As many of the first as one frame has room for, one at least."""
    total = 0
    fitting: list[Waiting] = []
    for row in rows:
        total += len(row.payload) + 64
        if fitting and total > wire.MAX_BYTES:
            break
        fitting.append(row)
    return fitting
