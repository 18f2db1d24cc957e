"""One connection to the broker that takes messages by the socket buffer and sends the hub's acknowledgements.

A thread of its own does all that touches the socket (a TLS connection may not be read and written by two at once).
A message gets its PUBACK when `take` has taken it; while `take` takes nothing, the broker holds back after
`RECEIVE_MAXIMUM` messages.
"""

from __future__ import annotations

import contextlib
import logging
import random
import selectors
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from hub import packets
from hub.packets import Publish
from lineside import mqtt
from lineside.clock import NS, Clock
from lineside.errors import BrokerError, WireError
from lineside.mqtt import BrokerConfig

LOG = logging.getLogger("hub.subscriber")
RECEIVE_MAXIMUM = 1000
KEEP_ALIVE_S = 15
CONNECT_S = 10.0
READ_BYTES = 256 * 1024
LEAVE_S = 5.0
OFFERED_S = 0.02  # how soon messages that found no room are offered again


class Subscriber:
    """Stays connected from `start` to `stop`, with back-off; `take` gives how many, from the first, it has taken."""

    def __init__(
        self,
        broker: BrokerConfig,
        base: Path,
        client: str,
        filters: Sequence[str],
        take: Callable[[Sequence[Publish]], int],
        clock: Clock,
    ) -> None:
        self._broker, self._client, self._filters, self._take, self._clock = broker, client, filters, take, clock
        self._password = mqtt.password(broker, base)
        self._tls = mqtt.tls(broker, base)
        self._outbox: deque[tuple[bytes, bytes]] = deque()
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="subscriber", daemon=True)
        self._link: _Link | None = None
        self._told = ""

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us and our subscriptions."""
        link = self._link
        return link is not None and link.subscribed

    def start(self) -> None:
        """Connect in the background; the broker may come later."""
        self._thread.start()

    def publish(self, messages: Sequence[tuple[bytes, bytes]]) -> None:
        """Send (topic, payload) at QoS 1, from any thread. What waits when the connection is lost is lost with it."""
        if self.connected:
            self._outbox.extend(messages)
            self._nudge()

    def stop(self) -> None:
        """Send what waits and leave. May be called twice."""
        self._stopping.set()
        self._nudge()
        if self._thread.is_alive():
            self._thread.join()
        self._wake.close()
        self._woken.close()

    def _nudge(self) -> None:
        with contextlib.suppress(OSError):  # a pipe full of nudges wakes it as well; a closed one has nobody to wake
            self._wake.send(b"\0")

    def _run(self) -> None:
        first_s, last_s = mqtt.back_off()
        pause_s = first_s
        while not self._stopping.is_set():
            try:
                with _Link(self._open(), self._clock) as self._link:
                    who = self._client, self._broker.username, self._password
                    self._link.send(packets.connect(*who, KEEP_ALIVE_S, RECEIVE_MAXIMUM))
                    self._serve(self._link)
                return
            except (OSError, WireError, BrokerError) as error:
                pause_s = first_s if self.connected else min(2 * pause_s, last_s)
                self._complain(str(error))
            finally:
                self._link = None
                self._outbox.clear()
            self._stopping.wait(pause_s * random.uniform(0.8, 1.2))

    def _complain(self, text: str) -> None:
        """Once for each new reason: a broker that is away for days must not fill the disk with log."""
        if text != self._told or self.connected:
            LOG.warning("broker %s:%d: %s", self._broker.host, self._broker.port, text)
        self._told = text

    def _open(self) -> socket.socket:
        made = socket.create_connection((self._broker.host, self._broker.port), CONNECT_S)
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                made = self._tls.wrap_socket(made, server_hostname=self._broker.host)
            made.setblocking(False)
        except BaseException:
            made.close()
            raise
        return made

    def _serve(self, link: _Link) -> None:
        """Until `stop`, or an error that ends the connection."""
        pending: list[Publish] = []
        leave_ns = 0
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            selector.register(link.socket, selectors.EVENT_READ)
            while not (leave_ns and ((link.idle and not self._outbox) or self._clock.now_ns() > leave_ns)):
                # At QoS 1 the broker holds back by itself; what comes at QoS 0 would pile up here.
                listens = len(pending) <= RECEIVE_MAXIMUM
                if listens:
                    self._await(selector, link, 0.0 if link.unread else OFFERED_S if pending or leave_ns else 1.0)
                    pending += self._hear(link)
                else:
                    self._stopping.wait(OFFERED_S)
                if pending and (taken := self._take(pending)):
                    link.send(packets.pubacks(pending[:taken]))
                    del pending[:taken]
                self._tell(link)
                link.keep_alive(listens)
                link.flush()
                if self._stopping.is_set() and not leave_ns:
                    leave_ns = self._clock.now_ns() + round(LEAVE_S * NS)
            link.send(packets.DISCONNECT_BYTES)
            link.flush()

    def _await(self, selector: selectors.BaseSelector, link: _Link, most_s: float) -> None:
        """Until the broker has said something, takes what we have to say, or somebody has published."""
        selector.modify(link.socket, selectors.EVENT_READ | (selectors.EVENT_WRITE if link.unsent else 0))
        for key, _ in selector.select(most_s):
            if key.fileobj is self._woken:
                self._woken.recv(4096)

    def _hear(self, link: _Link) -> list[Publish]:
        messages, words = link.hear()
        for word in words:
            if word.type == packets.CONNACK:
                if code := packets.reason(word):
                    raise BrokerError(
                        f"broker user {self._broker.username}", f"refused ({code:#x})", "mend its password"
                    )
                link.room = packets.broker_takes(word)
                link.send(packets.subscribe(1, self._filters))
            elif word.type == packets.SUBACK:
                if packets.refused(word):
                    raise BrokerError("subscription", "refused by the broker", "give the user `hub` its topics")
                link.subscribed = True
            elif word.type == packets.PUBACK:
                link.acknowledged(word)
            elif word.type == packets.DISCONNECT:
                raise BrokerError("broker", f"ends the connection ({packets.reason(word):#x})", "see its log")
        return messages

    def _tell(self, link: _Link) -> None:
        while self._outbox and link.room:
            link.publish(*self._outbox.popleft())


class _Link:
    """One life of the connection: bytes in, bytes out, who waits for what."""

    def __init__(self, opened: socket.socket, clock: Clock) -> None:
        self.socket, self._clock = opened, clock
        self.subscribed = False
        self.room = 0  # messages that the broker takes before it has acknowledged earlier ones
        self.unsent = bytearray()
        self.unread = False  # TLS may hold more than the socket knows of
        self._sent_unacknowledged = 0
        self._left = b""
        self._packet = 0
        self._heard_ns = self._said_ns = self._asked_ns = clock.now_ns()

    def __enter__(self) -> _Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    @property
    def idle(self) -> bool:
        """Whether everything that we sent has gone and was acknowledged."""
        return not self.unsent and not self._sent_unacknowledged

    def send(self, data: bytes) -> None:
        self.unsent += data

    def publish(self, topic: bytes, payload: bytes) -> None:
        self._packet = self._packet % 65_535 + 1
        self.send(packets.publish(topic, payload, self._packet))
        self.room -= 1
        self._sent_unacknowledged += 1

    def acknowledged(self, word: packets.Word) -> None:
        self.room += 1
        self._sent_unacknowledged -= 1
        if (code := packets.reason(word)) >= packets.FAILURE:
            LOG.error("the broker refuses an acknowledgement (%#x): give the user `hub` its topics", code)

    def hear(self) -> tuple[list[Publish], list[packets.Word]]:
        """What has come; nothing when nothing has. Raises OSError at the end of the stream."""
        parts, size = [self._left], 0
        while size < READ_BYTES:
            try:
                data = self.socket.recv(READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            if not data:
                raise ConnectionResetError("the broker closed the connection")
            parts.append(data)
            size += len(data)
            if self._plain and len(data) < READ_BYTES:
                break  # the kernel's buffer is empty; a TLS socket gives one record a call
        self.unread = size >= READ_BYTES
        if not size:
            return [], []
        self._heard_ns = self._clock.now_ns()
        heard = packets.read(b"".join(parts))
        self._left = heard.left
        return heard.messages, heard.words

    def flush(self) -> None:
        """Send what the socket takes now."""
        while self.unsent:
            try:
                sent = self.socket.send(self.unsent)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            del self.unsent[:sent]
            self._said_ns = self._clock.now_ns()

    def keep_alive(self, listens: bool) -> None:
        """Ping in time; a broker that has said nothing for one and a half periods is gone (section 3.1.2.10)."""
        now_ns = self._clock.now_ns()
        if not listens:
            self._heard_ns = now_ns  # we would not have heard it
        if now_ns - self._heard_ns > KEEP_ALIVE_S * NS * 3 // 2:
            raise TimeoutError(f"no word for {KEEP_ALIVE_S * 3 // 2} s")
        if now_ns - max(self._asked_ns, min(self._said_ns, self._heard_ns)) > KEEP_ALIVE_S * NS // 2:
            self.send(packets.PINGREQ_BYTES)
            self._asked_ns = now_ns

    @property
    def _plain(self) -> bool:
        return not isinstance(self.socket, ssl.SSLSocket)
