"""The process that has the network: it asks the agent, over its Unix socket, for what is to be sent, and sends it.

It holds no state. Killed at any moment, its successor asks for the same messages; the agent forgets them on the hub's
word alone, and the hub stores each once.
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from tuf.api.exceptions import DownloadError, DownloadHTTPError

from edge import frames, web
from edge.config import DeviceConfig
from edge.frames import Channel
from edge.metrics import PLAIN, Answer, MetricsServer
from edge.outbox import Waiting
from edge.shelf import Lane
from edge.uplink import Uplink
from edge.watchdog import Signs
from lineside.clock import Clock
from lineside.errors import LinesideError, WireError
from lineside.messages import Command, Piece, StationState
from lineside.ranges import Range
from lineside.targets import MAX_MODEL_BYTES

log = logging.getLogger(__name__)
T = TypeVar("T", bound=frames.Frame)
ANSWER_S = 10.0  # the agent's disk may take its time
NEWS_S = 10.0  # the agent says something each 2 s
PAUSE_S = (0.2, 5.0)  # between attempts, doubled with jitter
CUT = (OSError, EOFError, WireError)


@dataclass
class Life:
    """What this process is about: how often it looked for the agent or heard of it, and with whom it is now."""

    heard: int = 0
    courier: Courier | None = None
    uplink: Uplink | None = None

    def signs(self) -> Signs:
        """For the watchdog."""
        if (uplink := self.uplink) is None:
            return Signs({"agent": self.heard}, status="waiting for the agent")
        return Signs({"agent": self.heard, "sending": uplink.rounds}, status=uplink.problem or "with the agent")

    def page(self, path: str, accept: str) -> Answer:
        """A page of the agent's metrics, for whoever asks over HTTP."""
        if (courier := self.courier) is None:
            return 503, PLAIN, b"no agent is connected\n"
        try:
            return courier.page(path, accept)
        except OSError as error:
            return 503, PLAIN, f"{error}\n".encode()


class Courier:
    """One acquaintance with the agent; an edge.uplink.Supply. Any failure of the socket ends it: then make another."""

    def __init__(self, path: Path, device: str) -> None:
        self._asking = connect(path, "outbox", device)
        try:
            self._news = connect(path, "news", device)
        except BaseException:
            self._asking.close()
            raise
        self._lock = threading.Lock()

    def places(self, limit: int, lane: Lane) -> list[int]:
        """As the outbox's."""
        return self._ask(frames.Places(limit, lane), frames.Numbers).places

    def pending(self, after: int, limit: int, lane: Lane) -> list[Waiting]:
        """As the outbox's, but at most what one frame has room for."""
        return self._ask(frames.Pending(after, limit, lane), frames.Rows).rows

    def forget(self, epoch: int, ranges: Sequence[Range]) -> int:
        """As the outbox's."""
        return self._ask(frames.Forget(epoch, list(ranges)), frames.Done).count

    def command(self, command: Command) -> None:
        """Hand on a request."""
        self._ask(frames.Heard(command), frames.Done)

    def state(self, state: StationState) -> None:
        """Hand on what the station is in."""
        self._ask(frames.Told(state), frames.Done)

    def said(self, report: Command) -> None:
        """The broker has this report."""
        self._ask(frames.Said(report), frames.Done)

    def page(self, path: str, accept: str) -> Answer:
        """A page of the agent's metrics."""
        rendered = self._ask(frames.Page(path, accept), frames.Rendered)
        return rendered.status, rendered.kind, rendered.body

    def piece(self) -> Piece | None:
        """What is to be sent of recordings, if anything."""
        return self._ask(frames.Next(), frames.Carried).piece

    def news(self) -> Iterator[frames.Frame]:
        """What the agent tells, until it says farewell or can be heard no more."""
        with contextlib.suppress(*CUT):
            while not isinstance(told := self._news.receive(NEWS_S), frames.Farewell):
                yield told
            yield told

    def close(self) -> None:
        """End both connections; `news` ends with them."""
        self._asking.close()
        self._news.close()

    def _ask(self, question: frames.Frame, kind: type[T]) -> T:
        with self._lock:
            try:
                self._asking.send(question)
                answer = self._asking.receive(ANSWER_S)
                if not isinstance(answer, (kind, frames.Failed)):
                    raise WireError("frame", f"{type(answer).__name__} is no answer", "run one version on both sides")
            except CUT as error:
                self._asking.close()
                self._news.hear_out()  # a farewell may lie there unread
                raise ConnectionError(f"the agent cannot be asked ({error})") from error
        if isinstance(answer, frames.Failed):
            raise OSError(answer.reason)
        return answer


def connect(path: Path, role: frames.Role, device: str) -> Channel:
    """A connection to the agent in one role.

    Raises OSError, EOFError or WireError where there is none now, LinesideError where the agent wants another device or
    version.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    channel = Channel(made, "agent")
    try:
        made.settimeout(frames.PATIENCE_S)
        made.connect(str(path))
        channel.send(frames.Greeting(role, device))
        answer = channel.receive(frames.PATIENCE_S)
    except BaseException:
        channel.close()
        raise
    if isinstance(answer, frames.Failed):
        channel.close()
        raise LinesideError(str(path), answer.reason, "give both halves the same device file and version")
    return channel


def run(config: DeviceConfig, base: Path, path: Path, clock: Clock, stop: threading.Event, life: Life) -> None:
    """Be the uplink of the agent at `path` until `stop` is set; waits for an agent that is not there.

    `life` is kept up to date meanwhile.

    Raises LinesideError for a wrong device, or for credentials that are missing.
    """
    fetching = threading.Thread(target=_fetch, args=(config, base, path, stop), name="fetch", daemon=True)
    if config.repository.url:
        fetching.start()
    metrics = MetricsServer(config.metrics, life.page)
    metrics.start()
    while (courier := _met(path, config.device.id, stop, life)) is not None:
        _serve(config, base, courier, clock, stop, life)
        stop.wait(random.uniform(0, PAUSE_S[0]))
    metrics.stop()


def _met(path: Path, device: str, stop: threading.Event, life: Life) -> Courier | None:
    """The agent's acquaintance, however long it takes; None once `stop` is set."""
    told = False
    for pause_s in _pauses():
        if stop.is_set():
            return None
        life.heard += 1
        try:
            return Courier(path, device)
        except CUT as error:
            if not told:
                log.warning("%s: no agent there (%s); start `lineside edge run --socket %s`", path, error, path)
            told = True
        stop.wait(pause_s)
    return None


def _serve(config: DeviceConfig, base: Path, courier: Courier, clock: Clock, stop: threading.Event, life: Life) -> None:
    """One life of the agent, or until `stop`, which is seen at its next heartbeat."""
    uplink = Uplink(config, base, courier, clock, courier.command, courier.state, courier.said, courier.piece)
    uplink.start()
    life.courier, life.uplink = courier, uplink
    last: frames.Frame | None = None
    for last in courier.news():
        life.heard += 1
        if stop.is_set():
            break
        if isinstance(last, frames.Report):
            uplink.report(last.command)
        uplink.wake()
    life.courier = life.uplink = None
    in_order = stop.is_set() or isinstance(last, frames.Farewell)
    if not in_order:
        log.warning("the agent is gone; waiting for it")
    uplink.stop("stopped" if in_order else "offline")
    courier.close()


def _pauses() -> Iterator[float]:
    """Doubling, with jitter: many devices share one power cut."""
    pause_s = PAUSE_S[0]
    while True:
        yield random.uniform(0.5, 1.0) * pause_s
        pause_s = min(2 * pause_s, PAUSE_S[1])


def _fetch(config: DeviceConfig, base: Path, path: Path, stop: threading.Event) -> None:
    """Bring files of the repository for as long as the process runs."""
    network = web.of(config.repository, base)
    pauses = _pauses()
    while not stop.wait(next(pauses)):
        try:
            channel = connect(path, "fetch", config.device.id)
            pauses = _pauses()
            with contextlib.closing(channel):
                while isinstance(asked := channel.receive(), frames.Get):
                    _bring(channel, network, asked, config.repository.url)
        except (*CUT, LinesideError) as error:
            log.info("fetching: %s", error)


def _bring(channel: Channel, network: web.Web, asked: frames.Get, base: str) -> None:
    """One file from where the agent wants it, or why there is none."""
    url = asked.url
    if not below(url, base):
        channel.send(frames.Failed(f"{url} is not below [repository] url {base}"))
        return
    try:
        for at, data in network.parts(url, asked.offset):
            if at + len(data) > MAX_MODEL_BYTES:
                raise DownloadError(f"{url}: more than {MAX_MODEL_BYTES} bytes")
            channel.send(frames.Part(data, at))
        channel.send(frames.Done())
    except DownloadError as error:
        channel.send(frames.Failed(str(error), error.status_code if isinstance(error, DownloadHTTPError) else 0))


def below(url: str, base: str) -> bool:
    """Whether a URL lies in the folder `base`.

    >>> below("http://hub/repo/metadata/1.root.json", "http://hub/repo")
    True
    >>> below("http://hub/repo/%2e%2e/secret", "http://hub/repo"), below("http://hub.evil/repo/a", "http://hub/repo")
    (False, False)
    """
    try:
        at, of = urlsplit(url), urlsplit(base.rstrip("/") + "/")
    except ValueError:
        return False
    steps = unquote(unquote(at.path)).replace("\\", "/").split("/")
    plain = not at.query and not at.fragment and "." not in steps and ".." not in steps
    return plain and (at.scheme, at.netloc) == (of.scheme, of.netloc) and at.path.startswith(of.path)
