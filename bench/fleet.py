"""Devices as far as a rollout sees them: a real TUF client, a real MQTT client, a key of their own; no encoder is run.

Each follows the agreement of lineside.targets and lineside.messages: it looks at its pointers when it starts and when
it is told to, takes the candidate that takes it, says every phase in a signed manifest, and goes back when told so.
`python -m bench.fleet PLANT_FOLDER --first 0 --count 500` runs a part of a plant's devices until its input ends.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import json
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as paho
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tuf.api.exceptions import DownloadError, RepositoryError
from tuf.ngclient import Updater as Client
from tuf.ngclient.urllib3_fetcher import Urllib3Fetcher
from urllib3.exceptions import HTTPError

from lineside import config, mqtt, topics, wire
from lineside.clock import NS, Clock, SystemClock
from lineside.manifest import said
from lineside.messages import Command, Installed, Manifest
from lineside.plant import PlantConfig
from lineside.targets import Pointer, pointer_name, read_model, read_pointer

RETRY_S = 2.0
WORKERS = 4
FAULT = "shadow: anomalies is 0.31, limit 0.02"


class Counting(Urllib3Fetcher):
    """Counts what it fetches."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = self.bytes = 0

    def _fetch(self, url: str) -> Iterator[bytes]:
        self.requests += 1
        for chunk in super()._fetch(url):
            self.bytes += len(chunk)
            yield chunk


@dataclass
class Slot:
    """What a modality runs, what it ran before, and what it is on the way to."""

    now: Installed | None = None
    coming: Installed | None = None  # as it will stand when it is taken
    due_ns: int = 0


class Device:
    """One device; in its shadow the version `fails_at` breaches a limit.

    `step` does what is due and gives the time of the next; one thread at a time calls it.
    """

    def __init__(
        self, plant: PlantConfig, base: Path, name: str, state: Path, clock: Clock, *, fails_at: int = 0
    ) -> None:
        self.name, self.looks, self.errors = name, 0, 0
        self._plant, self._base, self._state, self._clock, self._fails_at = plant, base, state, clock, fails_at
        self._key = Ed25519PrivateKey.generate()
        self._public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
        self._epoch, self._numbers = clock.now_ns(), itertools.count(1)
        self._slots: dict[str, Slot] = {}
        self._last: dict[str, Installed] = {}
        self._asked: list[Command] = []
        self._client: paho.Client | None = None
        self._told_to_look = True
        self.wake: Callable[[], None] = lambda: None

    def come(self) -> None:
        """Be there: connect, and look."""
        will = (self._topic("status"), "offline")
        self._client = mqtt.client(self._plant.connection(self.name), self.name, self._base, will)
        self._client.on_connect = self._connected
        self._client.on_message = self._heard
        mqtt.connect(self._client, self._plant.connection(self.name), wait=False)
        self.wake()

    def leave(self) -> None:
        """Be away."""
        if self._client is not None:
            with contextlib.suppress(RuntimeError, ValueError):  # the broker is gone already: its will speaks
                self._client.publish(self._topic("status"), "stopped", qos=1, retain=True).wait_for_publish(2)
            self._client.disconnect()
            self._client.loop_stop()

    def step(self, fetcher: Counting) -> int | None:
        """Do what is due; when to come again (ns), None when only a request will bring anything new."""
        now = self._clock.now_ns()
        due = [modality for modality, slot in self._slots.items() if slot.coming and 0 < slot.due_ns <= now]
        try:
            for modality in due:
                self._advance(self._slots[modality])
            if self._told_to_look or not due:
                self._told_to_look = False
                self._look(fetcher)
        except (RepositoryError, DownloadError, HTTPError, OSError):
            self.errors, self._told_to_look = self.errors + 1, True
            return now + round(RETRY_S * NS)
        if self._said() != self._last:
            self._tell()
        waits = [slot.due_ns for slot in self._slots.values() if slot.due_ns]
        if not waits:
            self._answer()
        return min(waits, default=None)

    def _look(self, fetcher: Counting) -> None:
        self.looks += 1
        client = self._tuf(fetcher)
        client.refresh()
        for modality in self._plant.modalities:
            info = client.get_targetinfo(pointer_name(modality))
            if info is not None:
                pointer = read_pointer(self._fetch(client, info), modality)
                self._want(client, modality, pointer)

    def _want(self, client: Client, modality: str, pointer: Pointer) -> None:
        slot = self._slots.setdefault(modality, Slot())
        candidate, old = pointer.candidate, slot.now
        begun = candidate and old and old.rollout == candidate.rollout
        open_ = candidate and candidate.takes(self.name) and (begun or not candidate.paused)
        offered = candidate if open_ else None
        version, files = (offered.version, offered.targets) if offered else (pointer.version, pointer.targets)
        rollout = offered.rollout if offered else old.rollout if old else ""
        if slot.coming and (slot.coming.version, slot.coming.rollout) == (version, rollout):
            return
        slot.coming, slot.due_ns = None, 0
        refused = old is not None and offered is not None and (old.rollout, old.phase) == (rollout, "failed")
        if refused:
            return
        asked = {"rollout": rollout, "candidate": version if offered else old.candidate if old else 0}
        if old and old.version == version:
            if not offered and old.phase == "failed":
                return  # why it failed stands until it is asked for something else
            slot.now = msgspec.structs.replace(old, phase="steady", reason="", **asked)
            return
        if old and old.previous_version == version and not offered:
            slot.now = self._switched(old, old.previous_version, old.previous_sha256, asked)
            return
        info = client.get_targetinfo(files["fp32"])
        assert info is not None
        self._fetch(client, info)  # verified against its signed length and hash
        sha256 = read_model(info.custom, info.path).sha256
        taken = self._switched(old, version, sha256, asked)
        if offered is None or old is None:
            slot.now = taken
            return
        slot.coming, slot.now = taken, msgspec.structs.replace(old, phase="shadow", reason="", **asked)
        slot.due_ns = self._clock.now_ns() + max(1, round(offered.terms.shadow_s * NS))
        self._probation_ns = round(offered.terms.probation_s * NS)

    def _switched(self, old: Installed | None, version: int, sha256: str, asked: dict[str, Any]) -> Installed:
        return Installed(
            version=version,
            sha256=sha256,
            precision="fp32",
            since_ns=self._clock.now_ns(),
            previous_version=old.version if old else 0,
            previous_sha256=old.sha256 if old else "",
            **asked,
        )

    def _advance(self, slot: Slot) -> None:
        """Shadow to probation, probation to steady; or shadow to failed."""
        assert slot.coming is not None
        assert slot.now is not None
        now = self._clock.now_ns()
        if slot.now.phase == "probation":
            slot.now, slot.coming, slot.due_ns = slot.coming, None, 0
        elif slot.coming.version == self._fails_at:
            slot.now, slot.coming, slot.due_ns = _phase(slot.now, "failed", FAULT), None, 0
        else:
            slot.coming = msgspec.structs.replace(slot.coming, since_ns=now)
            slot.now, slot.due_ns = (
                msgspec.structs.replace(slot.coming, phase="probation"),
                now + max(1, self._probation_ns),
            )

    def _tuf(self, fetcher: Counting) -> Client:
        url = f"http://{self._plant.hub.host}:{self._plant.hub.port}/repository"
        self._state.mkdir(parents=True, exist_ok=True)
        root = (self._base / "root.json").read_bytes()
        return Client(
            str(self._state), f"{url}/metadata/", target_base_url=f"{url}/targets/", fetcher=fetcher, bootstrap=root
        )

    def _fetch(self, client: Client, info: Any) -> bytes:
        with tempfile.TemporaryDirectory(dir=self._state) as folder:
            return Path(client.download_target(info, str(Path(folder, "target")))).read_bytes()

    def _said(self) -> dict[str, Installed]:
        return {modality: slot.now for modality, slot in self._slots.items() if slot.now}

    def _tell(self) -> None:
        self._last = self._said()
        told = Manifest(
            device=self.name, station="press", time_ns=self._clock.now_ns(), agent="simulated", encoders=self._last,
            key=self._public, epoch=self._epoch, seq=next(self._numbers),
        )  # fmt: skip
        signed = msgspec.structs.replace(told, signature=self._key.sign(said(told)).hex())
        self._publish(self._topic("manifest"), wire.encode(signed))

    def _connected(self, client: paho.Client, _: Any, __: Any, reason: Any, ___: Any) -> None:
        if not reason.is_failure:
            client.subscribe(topics.everything(self._plant.site, self.name, "cmd"), 1)
            client.publish(self._topic("status"), "online", qos=1, retain=True)

    def _heard(self, _: paho.Client, __: Any, message: paho.MQTTMessage) -> None:
        if not message.payload:
            return
        command: Command = wire.decode("cmd", bytes(message.payload))
        if command.status == "init":
            self._report(command, "executing")
            self._asked.append(command)
            self._told_to_look = True
            if command.op == "rollback":
                self._roll_back(command.args.get("modality", ""))
            self.wake()

    def _roll_back(self, modality: str) -> None:
        slot = self._slots[modality]
        if slot.now and slot.now.previous_version:
            asked = {"rollout": slot.now.rollout, "candidate": slot.now.candidate}
            slot.now = self._switched(slot.now, slot.now.previous_version, slot.now.previous_sha256, asked)
            self._tell()

    def _answer(self) -> None:
        """Requests end when nothing is under way any more: as what came of it."""
        failed = [one.reason for one in self._said().values() if one.phase == "failed"]
        while self._asked:
            self._report(self._asked.pop(0), "failed" if failed else "successful", *failed[:1])

    def _report(self, command: Command, status: str, reason: str = "") -> None:
        report = msgspec.structs.replace(command, status=status, reason=reason)
        self._publish(self._topic("cmd", command.op, command.id), wire.encode(report))

    def _publish(self, topic: str, payload: bytes) -> None:
        if self._client is not None:
            self._client.publish(topic, payload, qos=1, retain=True)

    def _topic(self, kind: str, *rest: str) -> str:
        return topics.name(self._plant.site, self.name, kind, *rest)


class Fleet:
    """Some devices and the threads that let them do what is due."""

    def __init__(self, devices: Sequence[Device], clock: Clock, workers: int = WORKERS) -> None:
        self.devices, self._clock = devices, clock
        self.fetchers = [Counting() for _ in range(workers)]
        self._due: list[tuple[int, int]] = []  # (when, which device)
        self._busy: set[int] = set()
        self._change, self._ended = threading.Condition(), False
        self._threads = [threading.Thread(target=self._work, args=(one,), daemon=True) for one in self.fetchers]
        for number, device in enumerate(devices):
            device.wake = lambda number=number: self._push(number, 0)  # type: ignore[misc]

    def __enter__(self) -> Fleet:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._change:
            self._ended = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()
        for device in self.devices:
            device.leave()

    def counts(self) -> dict[str, int]:
        """What all of them did."""
        return {
            "looks": sum(device.looks for device in self.devices),
            "errors": sum(device.errors for device in self.devices),
            "requests": sum(fetcher.requests for fetcher in self.fetchers),
            "bytes": sum(fetcher.bytes for fetcher in self.fetchers),
        }

    def _push(self, number: int, when_ns: int) -> None:
        with self._change:
            heapq.heappush(self._due, (when_ns, number))
            self._change.notify()

    def _take(self) -> int | None:
        """The next device that is due and that nobody is at; None at the end."""
        with self._change:
            while not self._ended:
                now = self._clock.now_ns()
                ready = [entry for entry in self._due if entry[0] <= now and entry[1] not in self._busy]
                if ready:
                    number = min(ready)[1]
                    self._due = [entry for entry in self._due if entry[1] != number]
                    heapq.heapify(self._due)
                    self._busy.add(number)
                    return number
                later = min((when for when, number in self._due if number not in self._busy), default=now + NS)
                self._change.wait(min(1.0, max(0.001, (later - now) / NS)))
        return None

    def _work(self, fetcher: Counting) -> None:
        while (number := self._take()) is not None:
            again = self.devices[number].step(fetcher)
            with self._change:
                self._busy.discard(number)
                if again is not None:
                    heapq.heappush(self._due, (again, number))
                self._change.notify()


def _phase(one: Installed, phase: str, reason: str = "") -> Installed:
    return msgspec.structs.replace(one, phase=phase, reason=reason)


def main() -> None:
    """Run a part of a plant's devices. A line of input is done at once: `come NAME …`, `count`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plant", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--away", nargs="*", default=[], help="devices that come only when they are told to")
    parser.add_argument("--failing", nargs="*", default=[], help="devices whose shadow breaches a limit")
    parser.add_argument("--fails-at", type=int, default=0, help="by which version it is breached")
    asked = parser.parse_args()
    plant, clock = config.load(asked.plant / "plant.toml", PlantConfig), SystemClock()
    names = plant.devices[asked.first : asked.first + asked.count]
    with tempfile.TemporaryDirectory(prefix="lineside-fleet-") as folder:
        devices = {
            name: Device(
                plant,
                asked.plant,
                name,
                Path(folder, name),
                clock,
                fails_at=asked.fails_at if name in asked.failing else 0,
            )
            for name in names
        }
        with Fleet(list(devices.values()), clock) as fleet:
            for name, device in devices.items():
                if name not in asked.away:
                    device.come()
            for line in sys.stdin:
                word, *rest = line.split()
                for name in set(rest) & set(devices) if word == "come" else ():
                    devices[name].come()
                print(json.dumps(fleet.counts()), flush=True)


if __name__ == "__main__":
    main()
