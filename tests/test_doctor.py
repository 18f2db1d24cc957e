"""`lineside edge doctor`: what is not well is told in one line with its mend."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.line_device import install

DEVICE = """
[device]
id = "edge-1"
site = "line1"
station = "press"

[[sensors]]
name = "cam0"
modality = "camera"
source = {camera}

[[sensors]]
name = "mic0"
modality = "microphone"
source = "simulation"

[broker]
port = {port}

[repository]
url = "{url}"
"""
SIMULATED, MISSING = '"simulation"', '"camera"\ndevice = "/dev/video99"'


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Somebody who answers; whether it is a broker is for the uplink to find out."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.listen()
        yield made


def doctor(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lineside", "edge", "doctor", "--config", "device.toml", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


def test_all_well(tmp_path: Path, listener: socket.socket) -> None:
    (tmp_path / "device.toml").write_text(DEVICE.format(camera=SIMULATED, port=listener.getsockname()[1], url=""))
    install(tmp_path / "state")
    done = doctor(tmp_path)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    things = ("cam0", "mic0", "broker", "encoder camera", "encoder microphone", "disk")
    assert [line.split(":")[0] for line in lines] == [f"ok   {thing}" for thing in things]
    assert lines[1].endswith("16000 samples in 1 s")
    assert lines[3].endswith("camera-1 (fp32) on CPUExecutionProvider")


def test_each_thing_that_is_not_well_has_its_mend_and_looking_changes_nothing(tmp_path: Path) -> None:
    install(tmp_path / "state", "camera")
    encoder = tmp_path / "state" / "slots" / "camera" / "a" / "encoder.onnx"
    encoder.write_bytes(encoder.read_bytes()[:-1])
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        (tmp_path / "device.toml").write_text(DEVICE.format(camera=MISSING, port=port, url=url))
        before = sorted(tmp_path.rglob("*"))
        done = doctor(tmp_path, "--json")
    assert done.returncode == 1
    assert sorted(tmp_path.rglob("*")) == before
    found = {each["thing"]: (each["well"], each["told"]) for each in json.loads(done.stdout)}
    assert {thing for thing, (well, _) in found.items() if well} == {"mic0", "disk"}
    for thing, *told in (
        ("cam0", "cannot open /dev/video99", "is it plugged in and free?"),
        ("broker", f"127.0.0.1:{port} does not answer", "start the hub"),
        ("repository", f"{url}/metadata/timestamp.json does not answer", "[repository] url"),
        ("encoder camera", "damaged on disk", "fetched again"),
        ("encoder microphone", "none on this device yet", "publish one"),
    ):
        assert all(word in found[thing][1] for word in told), found[thing]
