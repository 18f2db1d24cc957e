"""What ran when, from manifests that are really signed: the right one of two, the alarm's own word, doubts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typer.testing import CliRunner

from hub.__main__ import app
from hub.ran import look_up, moment_ns
from hub.store import Store, database_url
from hub.tables import row
from lineside import wire
from lineside.clock import NS
from lineside.errors import LinesideError
from lineside.manifest import said
from lineside.messages import Alarm, Installed, Manifest, Message
from lineside.pins import Pins

KEY = Ed25519PrivateKey.generate()
T0 = moment_ns("2026-11-23T10:00Z")


def manifest(seq: int, at_s: int, key: Ed25519PrivateKey = KEY, **cameras: tuple[int, int]) -> Manifest:
    """Signed at T0 + `at_s`; by modality the version and since when (s)."""
    encoders = {
        name: Installed(version=version, sha256=f"{version:02}", precision="fp32", since_ns=T0 + since * NS)
        for name, (version, since) in cameras.items()
    }
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
    told = Manifest(
        device="edge-1", station="p", time_ns=T0 + at_s * NS, agent="-", encoders=encoders, key=public, epoch=1, seq=seq
    )
    return msgspec.structs.replace(told, signature=key.sign(said(told)).hex())


def alarm(at_s: int) -> Alarm:
    return Alarm(
        device="edge-1", epoch=1, seq=90, station="p", key="edge-1/p/anomaly/7", kind="anomaly", state="raised",
        subject="p", top_sensor="cam0", top_modality="camera", onset_ns=T0 + at_s * NS, time_ns=T0 + at_s * NS,
        p_value=0.0, evidence=9.0, contributions={}, versions={"camera": "2"}, limits={}, text="",
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(database_url("sqlite:///hub.db", tmp_path))
    messages: list[Message] = [
        manifest(1, 0, camera=(1, -500), microphone=(1, -500)),
        manifest(2, 105, camera=(2, 100), microphone=(1, -500)),
        manifest(3, 205, camera=(3, 200), microphone=(1, -500)),
        alarm(150),
    ]
    opened.add([row(wire.kind_of(one), one, wire.encode(one), 7) for one in messages])
    yield opened
    opened.close()


def versions(store: Store, at_s: int, folder: Path) -> dict[str, int]:
    rows = look_up(store, Pins(folder, keeps=True).problem, device="edge-1", at_ns=T0 + at_s * NS)
    assert all(one.verified for one in rows)
    return {one.modality: one.version for one in rows}


def test_the_word_that_was_true_then_counts(store: Store, tmp_path: Path) -> None:
    assert versions(store, 50, tmp_path) == {"camera": 1, "microphone": 1}
    assert versions(store, 99, tmp_path)["camera"] == 1
    assert versions(store, 102, tmp_path)["camera"] == 2  # told at 105, but it ran since 100
    assert versions(store, 199, tmp_path)["camera"] == 2
    assert versions(store, 9000, tmp_path) == {"camera": 3, "microphone": 1}
    assert versions(store, -400, tmp_path)["camera"] == 1  # before its first word, which says since when
    with pytest.raises(LinesideError, match=r"edge-1: what ran at .* is not known: its first word is of"):
        versions(store, -501, tmp_path)
    with pytest.raises(LinesideError, match=r"edge-9: .*never sent a manifest"):
        look_up(store, Pins(tmp_path).problem, device="edge-9", at_ns=T0)


def test_a_past_alarm_stands_beside_what_ran_at_its_onset(store: Store, tmp_path: Path) -> None:
    rows = look_up(store, Pins(tmp_path, keeps=True).problem, alarm="edge-1/p/anomaly/7")
    assert [(one.modality, one.version, one.alarm_version, one.sha256) for one in rows] == [
        ("camera", 2, "2", "02"),
        ("microphone", 1, "", "01"),
    ]
    with pytest.raises(LinesideError, match="no such alarm"):
        look_up(store, Pins(tmp_path).problem, alarm="edge-1/other")


def test_what_another_key_signed_is_shown_with_the_doubt(store: Store, tmp_path: Path) -> None:
    foreign = manifest(4, 305, Ed25519PrivateKey.generate(), camera=(9, 300))
    forged = msgspec.structs.replace(manifest(5, 405, camera=(3, 200)), agent="forged")
    store.add([row("manifest", one, wire.encode(one), 7) for one in (foreign, forged)])

    def doubts(pins: Pins, at_s: int) -> list[str]:
        return [one.doubt for one in look_up(store, pins.problem, device="edge-1", at_ns=T0 + at_s * NS)]

    assert set(doubts(Pins(tmp_path), 210)) == {
        "no key of edge-1 is kept yet; `lineside deploy status` keeps the first one that it sees"
    }
    assert doubts(Pins(tmp_path, keeps=True), 210) == ["", ""]
    assert doubts(Pins(tmp_path), 210) == ["", ""]
    assert "another key than at first" in doubts(Pins(tmp_path), 310)[0]
    assert doubts(Pins(tmp_path), 410) == ["its manifest is not signed by the key that it names"]
    assert Pins(tmp_path).problem("edge-2", manifest(1, 0)) == "its manifest is of edge-1"


def test_the_command_tells_it_and_fails_by_name(store: Store, tmp_path: Path) -> None:
    (tmp_path / "plant.toml").write_text('site = "line1"\ndevices = ["edge-1"]\n')

    def asked(*words: str) -> str:
        result = CliRunner().invoke(
            app, ["ran", "--config", str(tmp_path / "plant.toml"), *words], standalone_mode=False
        )
        if result.exception:
            raise result.exception
        return result.stdout

    told = json.loads(asked("--alarm", "edge-1/p/anomaly/7", "--json"))["ran"]
    assert [(one["modality"], one["version"], one["verified"]) for one in told] == [
        ("camera", 2, False),
        ("microphone", 1, False),
    ]
    line = asked("--device", "edge-1", "--at", "2026-11-23T10:03Z").splitlines()[0]
    assert "edge-1  camera-2 fp32 02  since" in line
    for words in ((), ("--device", "edge-1"), ("--device", "edge-1", "--at", "noon"), ("--alarm", "no")):
        with pytest.raises(LinesideError):
            asked(*words)
