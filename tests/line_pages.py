"""A line whose pages are looked at: four stations of which one is ill, a rollout under way, signatures that end."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lineside import expiry, manifest
from lineside.clock import NS
from lineside.files import write_atomic
from lineside.messages import Installed, Manifest
from lineside.plant import RolloutSettings
from lineside.rollout_record import Event, Record, policy, rings
from lineside.targets import Terms
from tests.test_dashboard import Device, Hub

DEVICES = ("press-3", "press-4", "oven-1", "belt-2")
ROLLOUT = "7f3a91c2"
DAYS = {"root": 300, "targets": 280, "2.snapshot": 12, "timestamp": 0.4, "camera": 200}


def scene(hub: Hub) -> dict[str, Device]:
    """Devices that speak, but for the last, which has never come; call `end` on each."""
    devices = {name: Device(hub, name, faulty=name == "press-3") for name in DEVICES[:3]}
    signed_for_a_while(hub.folder / "repository" / "metadata")
    _rollout(hub.folder / "state" / "rollouts")
    for name, device in devices.items():
        device.begin()
        key = Ed25519PrivateKey.generate()
        if name != "oven-1":
            (hub.folder / "secrets" / f"{name}.pub").write_text(f"{key.public_key().public_bytes_raw().hex()}\n")
        device.send(_manifest(device, key, shadow=name == "press-4"))
    ill = devices["press-3"]
    muted = ill.alarm(
        "k0", 95, "mic0", "mic0 (microphone): the microphone gives no sound at all; is it muted or unplugged?", {}
    )
    ill.send(muted)
    ill.send(msgspec.structs.replace(muted, state="cleared", time_ns=muted.time_ns + 21 * NS))
    shares = {"cam0": 0.5, "mic0": 5.3, "vib0": 1.7}
    text = "press 3 is unlike normal: 71% of the evidence comes from mic0 (microphone)"
    ill.send(msgspec.structs.replace(ill.alarm("k1", 9, "mic0", text, shares), cause="process"))
    return devices


def _manifest(device: Device, key: Ed25519PrivateKey, *, shadow: bool) -> Manifest:
    now_ns = time.time_ns()
    camera = Installed(
        version=2, sha256="ab" * 32, precision="int8", since_ns=now_ns - 9 * 3600 * NS, previous_version=1
    )
    if shadow:
        asked = {"rollout": ROLLOUT, "candidate": 3, "phase": "shadow"}
        camera = msgspec.structs.replace(camera, **asked)
    microphone = msgspec.structs.replace(camera, precision="fp32", phase="steady", rollout="", candidate=0)
    told = Manifest(
        device=device.name,
        station=device.station,
        time_ns=now_ns,
        agent="0.1.0",
        encoders={"camera": camera, "microphone": microphone},
        key=key.public_key().public_bytes_raw().hex(),
    )
    return msgspec.structs.replace(told, signature=key.sign(manifest.said(told)).hex())


def _rollout(folder: Path) -> None:
    begun_ns = time.time_ns() - 1200 * NS
    record = Record(
        rollout=ROLLOUT,
        versions={"camera": 3},
        rings=rings(["press-4"], [50, 100]),
        policy=policy(RolloutSettings(), approve=True, soak_min=10),
        terms=Terms(),
        state="open",
        since_ns=begun_ns,
        events=[Event(begun_ns, "ring 1 of 3 opened: press-4")],
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{ROLLOUT}.json", msgspec.json.encode(record))


def signed_for_a_while(folder: Path) -> None:
    """Metadata of the roles in DAYS, as far as its end goes."""
    folder.mkdir(parents=True, exist_ok=True)
    for role, left in DAYS.items():
        ends = (datetime.now(timezone.utc) + timedelta(days=left)).isoformat(timespec="seconds")
        whole = 7 if "timestamp" in role else 30 if "snapshot" in role else 365
        (folder / f"{role}.json").write_text(json.dumps({"signed": {"expires": ends, expiry.FIELD: whole}}))
