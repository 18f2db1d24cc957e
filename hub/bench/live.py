"""How long an alarm takes from a device's word to the eye, with fifty devices streaming."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from hub import packets
from hub.bench.browser import SIZE, chromium
from hub.bench.line import SITE, Line, publish, running
from lineside import topics, wire
from lineside.clock import NS, Clock
from lineside.messages import Alarm

DEVICES, PER_S = 50, 2.0
EPOCH = 2  # the streams have 1
SETTLE_S, BETWEEN_S, LATE_S = 5.0, (0.5, 1.1), 5.0
# Notes when the name of a new alarm's station stands on the page, in a frame that has been handed to the screen.
WATCH = """() => {
  window.seen = {};
  const note = () => requestAnimationFrame(() => {
    for (const one of document.querySelectorAll('.l-open-row .l-strong')) {
      const name = /bench-\\d+/.exec(one.textContent)?.[0];
      if (name) window.seen[name] ??= performance.timeOrigin + performance.now();
    }
  });
  new MutationObserver(note).observe(document.body, { childList: true, subtree: true, characterData: true });
}"""


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds from publishing to the page, of the alarms that were seen; 1-min load before and after."""

    devices: int
    alarms: int
    missed: int
    p50_ms: float
    p95_ms: float
    worst_ms: float
    load: tuple[float, float]


def measure(alarms: int, folder: Path, clock: Clock, tell: Callable[[str], None]) -> Live:
    """Raise one alarm after the other at random moments while the line page is open."""
    line = Line(folder, DEVICES, clock, dashboard=True)
    load = os.getloadavg()[0]
    spec = msgspec.structs.replace(line.spec(10**9), rate=PER_S, start_ns=clock.now_ns() + 3 * NS, patience_s=3600.0)
    with running(line.dashboard()), running(publish(spec)), chromium() as browser, _senders(line) as senders:
        page = browser.new_context(viewport=SIZE).new_page()
        page.goto(line.url)
        page.wait_for_selector(".l-tile")
        page.evaluate(WATCH)
        clock.sleep(SETTLE_S)
        tell(f"raising {alarms} alarms while {DEVICES} devices send {PER_S:g} scores a second each")
        sent_ms = _raise(alarms, senders, clock)
        clock.sleep(LATE_S)
        seen: dict[str, float] = page.evaluate("window.seen")
    took = sorted(seen[name] - at for name, at in sent_ms.items() if name in seen)
    return Live(
        devices=DEVICES,
        alarms=alarms,
        missed=alarms - len(took),
        p50_ms=round(took[len(took) // 2]),
        p95_ms=round(took[min(len(took) - 1, len(took) * 95 // 100)]),
        worst_ms=round(took[-1]),
        load=(round(load, 1), round(os.getloadavg()[0], 1)),
    )


def _raise(alarms: int, senders: dict[str, socket.socket], clock: Clock) -> dict[str, float]:
    """When each was sent, in ms since 1970, by the name of its station."""
    chance, names = random.Random(7), list(senders)
    sent_ms: dict[str, float] = {}
    for number in range(alarms):
        device = names[number % len(names)]
        now_ns = clock.now_ns()
        alarm = _alarm(device, number, now_ns)
        topic = topics.name(SITE, device, "alarm").encode()
        senders[device].sendall(packets.publish(topic, wire.encode(alarm), number + 1))
        sent_ms[alarm.station] = now_ns / 1e6
        clock.sleep(chance.uniform(*BETWEEN_S))
    return sent_ms


def _alarm(device: str, number: int, now_ns: int) -> Alarm:
    return Alarm(
        device=device,
        epoch=EPOCH,
        seq=number // DEVICES + 1,
        station=f"bench-{number}",
        key=f"bench-{number}",
        kind="anomaly",
        state="raised",
        subject=f"bench-{number}",
        top_sensor="mic0",
        top_modality="microphone",
        onset_ns=now_ns,
        time_ns=now_ns,
        p_value=1e-6,
        evidence=13.8,
        contributions={"cam0": 2.0, "mic0": 11.8},
        versions={"camera": "1"},
        limits={"p_limit": 0.001},
        text=f"bench-{number} is unlike normal",
    )


@contextlib.contextmanager
def _senders(line: Line) -> Iterator[dict[str, Any]]:
    """A second connection of each device, for its alarms."""
    with contextlib.ExitStack() as stack:
        made = {}
        for device in line.devices:
            one = stack.enter_context(socket.create_connection(("127.0.0.1", line.port), 10.0))
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secret = (line.secrets / f"{device}.password").read_text().strip()
            one.sendall(packets.connect(f"alarms-{device}", device, secret, 0, 1000))
            made[device] = one
        yield made
