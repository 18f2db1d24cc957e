"""Devices for the bench, several in one process: raw sockets, for fifty paho clients cost more than hub and broker.

`python -m hub.bench.publisher SPEC` prints one JSON line when the hub has acknowledged everything, or after
`patience_s`. After SIGTERM it sends nothing new.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import sys
import threading
from pathlib import Path

import msgspec

from hub import packets
from lineside import topics, wire
from lineside.clock import NS, Clock, SystemClock
from lineside.ledbat import Window
from lineside.messages import Score

CHUNK = 32
SEQ, START, END = 555000555, 1876543210987654321, 1776543210987654321
MESSAGE_BYTES = 600


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """Who sends how much: `count` messages a device, at most `window` of them without the hub's acknowledgement.

    `rate` is messages a second and device, 0 for as fast as it goes; after `resend_s` (0: never) a message that was not
    acknowledged is sent again, as a device's outbox does, which then also keeps its window (lineside.ledbat).
    `start_ns` is the capture time of the first message.
    """

    port: int
    site: str
    secrets: str
    devices: list[str]
    count: int
    window: int = 1000
    rate: float = 0.0
    resend_s: float = 0.0
    patience_s: float = 120.0
    start_ns: int = 0


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: messages that the hub acknowledged, seconds from first to last, and how long a message took.

    Milliseconds are to the hub's acknowledgement, from when the message was due where there is a rate, else from its
    first sending.
    """

    acknowledged: int
    lost: int
    resent: int
    seconds: float
    p50_ms: float
    p99_ms: float


def template(device: str) -> bytes:
    """A score of 600 bytes, with the names of its number, its beginning and its end in their places."""
    score = Score(
        device=device,
        epoch=1,
        seq=SEQ,
        station="press",
        start_ns=START,
        end_ns=END,
        evidence=1.0625,
        p_value=0.34567,
        limit=0.001,
        contributions={"cam0": 0.6125, "mic0": 0.45},
        without={"cam0": 0.5125, "mic0": 0.4875},
        agreements={"cam0+mic0": 0.8125},
        modalities={"cam0": "camera", "mic0": "microphone"},
        absent={},
        versions={"camera": "v1", "microphone": "v1"},
        skew_ms=3.25,
        state="",
    )
    missing = MESSAGE_BYTES - len(wire.encode(score))
    text = wire.encode(msgspec.structs.replace(score, state="a" * max(0, missing))).replace(b"%", b"%%")
    for number, name in ((SEQ, b"%(seq)d"), (START, b"%(start)d"), (END, b"%(end)d")):
        text = text.replace(str(number).encode(), name)
    return text


class Sender:
    """One device's connection."""

    def __init__(self, spec: Spec, device: str, clock: Clock) -> None:
        self.spec, self._device, self._clock = spec, device, clock
        self._template = template(device)
        self._topic = topics.name(spec.site, device, "score").encode()
        self.sent_ns: dict[int, int] = {}
        self._first_ns: dict[int, int] = {}  # of those that were sent again
        self.took_ns: list[int] = []
        self.acknowledged = self.resent = 0
        self.next, self.last = 1, spec.count
        self._packet = 0
        self._began_ns = clock.now_ns()
        self._window = Window(spec.window)
        self.socket = self._connect()
        self._left, self._unsent = b"", b""

    @property
    def done(self) -> bool:
        return self.next > self.last and not self.sent_ns

    def _connect(self) -> socket.socket:
        """Connected and subscribed. Raises OSError."""
        made = socket.create_connection(("127.0.0.1", self.spec.port), 10.0)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        secret = (Path(self.spec.secrets) / f"{self._device}.password").read_text().strip()
        ack = topics.everything(self.spec.site, self._device, "ack")
        made.sendall(packets.connect(f"bench-{self._device}", self._device, secret, 0, 1000))
        connack = _first(made)
        self._room = min(200, packets.broker_takes(connack))
        made.sendall(packets.subscribe(1, [ack], qos=0))
        _first(made)
        status = topics.name(self.spec.site, self._device, "status").encode()
        made.sendall(packets.publish(status, b"online", 0))
        made.setblocking(False)
        return made

    def send(self, now_ns: int) -> None:
        """As much as window, rate and socket allow now."""
        made: list[bytes] = []
        if self.spec.resend_s and self.sent_ns:
            made += self._late(now_ns)
        due = self.last
        if self.spec.rate:
            due = min(due, round((now_ns - self._began_ns) / NS * self.spec.rate) + 1)
        window = self._window.size if self.spec.resend_s else self.spec.window
        most = min(CHUNK, self._room, window - len(self.sent_ns), due + 1 - self.next)
        for seq in range(self.next, self.next + max(0, most)):
            made.append(self._message(seq))
            self.sent_ns[seq] = now_ns
            self.next += 1
        self._flush(b"".join(made))

    def _late(self, now_ns: int) -> list[bytes]:
        late_ns = now_ns - round(self.spec.resend_s * NS)
        late: list[int] = []
        for seq, sent_ns in self.sent_ns.items():
            if sent_ns > late_ns or len(late) >= min(self._room, CHUNK):
                break
            late.append(seq)
        if late:
            self._window.lost()
        for seq in late:  # to the end of the line: it is ordered by time
            self._first_ns.setdefault(seq, self.sent_ns.pop(seq))
            self.sent_ns[seq] = now_ns
        self.resent += len(late)
        return [self._message(seq) for seq in late]

    def _message(self, seq: int) -> bytes:
        self._packet = self._packet % 65_535 + 1
        self._room -= 1
        start_ns = self.spec.start_ns + seq * NS // 2
        payload = self._template % {b"seq": seq, b"start": start_ns, b"end": start_ns + NS}
        return packets.publish(self._topic, payload, self._packet)

    def _flush(self, data: bytes) -> None:
        self._unsent += data
        if self._unsent:
            with contextlib.suppress(BlockingIOError):
                self._unsent = self._unsent[self.socket.send(self._unsent) :]

    def hear(self, now_ns: int) -> None:
        """Take in what the broker and the hub say. Raises OSError when the broker ends the connection."""
        try:
            data = self.socket.recv(65_536)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionResetError(f"the broker ends the connection of {self._device}")
        heard = packets.read(self._left + data)
        self._left = heard.left
        self._room += sum(word.type == packets.PUBACK for word in heard.words)
        for message in heard.messages:
            for first, last in wire.decode("ack", message.payload).ranges:
                for seq in range(first, last + 1):
                    self._forget(seq, now_ns)

    def _forget(self, seq: int, now_ns: int) -> None:
        if (sent_ns := self.sent_ns.pop(seq, None)) is not None:
            self.acknowledged += 1
            self._window.took(now_ns - sent_ns, now_ns)
            since_ns = self._first_ns.pop(seq, sent_ns)
            if self.spec.rate:
                since_ns = self._began_ns + round((seq - 1) / self.spec.rate * NS)
            self.took_ns.append(now_ns - since_ns)


def _first(made: socket.socket) -> packets.Word:
    data = b""
    while not (heard := packets.read(data)).words:
        data += made.recv(4096)
    return heard.words[0]


def run(spec: Spec, clock: Clock, enough: threading.Event) -> Sent:
    """Send all, or what was sent until `enough` is set, and wait for the hub's word."""
    senders = [Sender(spec, device, clock) for device in spec.devices]
    began_ns = ended_ns = clock.now_ns()
    with selectors.DefaultSelector() as selector:
        for sender in senders:
            selector.register(sender.socket, selectors.EVENT_READ, sender)
        while not all(sender.done for sender in senders):
            for key, _ in selector.select(0.002):
                key.data.hear(clock.now_ns())
                ended_ns = clock.now_ns()
            for sender in senders:
                sender.last = sender.next - 1 if enough.is_set() else sender.last
                sender.send(clock.now_ns())
            if clock.now_ns() - began_ns > spec.patience_s * NS:
                break
    took = sorted(each for sender in senders for each in sender.took_ns) or [0]
    return Sent(
        acknowledged=sum(sender.acknowledged for sender in senders),
        lost=sum(len(sender.sent_ns) + sender.last + 1 - sender.next for sender in senders),
        resent=sum(sender.resent for sender in senders),
        seconds=round((ended_ns - began_ns) / NS, 3),
        p50_ms=round(took[len(took) // 2] / 1e6, 1),
        p99_ms=round(took[len(took) * 99 // 100] / 1e6, 1),
    )


def main(text: str) -> None:
    """Do what a Spec in JSON says, and print what came of it."""
    enough = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: enough.set())
    came = run(msgspec.json.decode(text, type=Spec), SystemClock(), enough)
    print(msgspec.json.encode(came).decode(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
