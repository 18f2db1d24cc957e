"""`lineside edge doctor`: what is not well is told in one line with its mend."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from edge import machine
from edge.config import SensorSettings, WindowSettings
from edge.listening import listen
from edge.outbox import Outbox
from edge.sink import running
from lineside.clock import NS, SimulatedClock, SystemClock
from lineside.messages import Tombstone
from tests.line_broker import wait
from tests.line_device import START_NS, install
from tests.line_port import free_port

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


def doctor(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lineside", "edge", "doctor", "--config", "device.toml", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


def told(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """By thing its mark and what is told of it."""
    pairs = [line.split(": ", 1) for line in done.stdout.splitlines()]
    return {name[5:]: f"{name[:5]}{rest}" for name, rest in pairs}


@pytest.mark.slow
@pytest.mark.alone
def test_all_well(tmp_path: Path) -> None:
    install(tmp_path / "state")
    with running() as port:
        (tmp_path / "device.toml").write_text(DEVICE.format(camera=SIMULATED, port=port, url=""))
        done = doctor(tmp_path)
    assert done.returncode == 0, done.stdout
    found = told(done)
    assert list(found)[:9] == [
        "agent",
        "cam0",
        "mic0",
        "skew cam0+mic0",
        "runtime",
        "encoder camera",
        "encoder microphone",
        "normal running",
        "broker",
    ]
    assert {"outbox", "clock", "disk"} <= set(found)
    for name, hz in (("cam0", 10), ("mic0", 16_000)):
        measured, asked = re.fullmatch(r"ok   (\S+) Hz measured, (\S+) Hz told", found[name]).groups()
        assert float(measured) == pytest.approx(hz, rel=0.1)
        assert float(asked) == hz
    assert int(re.search(r"(\d+) ms (later|earlier)", found["skew cam0+mic0"])[1]) < 100
    assert found["encoder camera"] == "ok   camera-1 (fp32) on CPUExecutionProvider, slot a, none to fall back to"
    assert found["normal running"] == "note not known yet; it is learned from the first 5 minutes of live running"
    assert found["broker"].endswith("lets edge-1 in")


@pytest.mark.slow
@pytest.mark.alone
def test_sensors_are_listened_to_at_once(tmp_path: Path) -> None:
    sensors = [SensorSettings(name=f"mic{k}", modality="microphone", source="simulation") for k in range(4)]
    before = time.monotonic()
    heard = listen(sensors, WindowSettings(), tmp_path, SystemClock(), 6.0, lambda _: None)
    assert time.monotonic() - before < 5.0  # two windows of one second each, not eight
    assert [len(one.windows) for one in heard] == [2] * 4
    assert all(one.rate_hz == pytest.approx(16_000, rel=0.1) for one in heard)


@pytest.mark.slow
def test_a_running_agent_keeps_its_sensors_and_tells_of_them_itself(tmp_path: Path) -> None:
    port = free_port()
    install(tmp_path / "state")
    text = DEVICE.format(camera=MISSING, port=1, url="") + f"[metrics]\nport = {port}\n"
    (tmp_path / "device.toml").write_text(text)
    command = [sys.executable, "-m", "lineside", "edge", "run", "--config", "device.toml"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as agent:
        try:
            assert wait(lambda: "mic0" in (metrics(port) or "") and "windows_total" in metrics(port))
            assert wait(lambda: 'sensor="mic0"} 0.0' not in metrics(port))
            assert wait(lambda: 'sensor="cam0"} 0.0' in metrics(port, "capture_up"))  # its process has given up
            found = told(doctor(tmp_path))
        finally:
            agent.terminate()
    assert found["agent"].startswith(f"ok   runs (process {agent.pid}) and holds the sensors")
    assert found["cam0"].startswith("FAIL gives no samples")
    assert re.match(r"ok   \d+ windows since its start", found["mic0"])


def metrics(port: int, name: str = "windows_total") -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
            return "\n".join(line for line in lines if name in line and "sensor" in line)
    except OSError:
        return ""


def test_what_the_machine_tells_is_read_where_it_is(tmp_path: Path) -> None:
    zone, cpu, gpu = (
        tmp_path / "sys" / part
        for part in ("class/thermal/thermal_zone0", "devices/system/cpu/cpu0/cpufreq", "class/devfreq/17000000.gpu")
    )
    for folder, texts in (
        (zone, {"type": "tj-thermal", "temp": "48500"}),
        (cpu, {"scaling_cur_freq": "729600", "cpuinfo_max_freq": "1510400"}),
        (gpu, {"cur_freq": "306000000", "max_freq": "624750000"}),
    ):
        folder.mkdir(parents=True)
        for name, text in texts.items():
            (folder / name).write_text(text + "\n")
    assert machine.heats(tmp_path) == [machine.Heat("tj-thermal", 48.5)]
    assert machine.frequencies(tmp_path) == [
        machine.Frequency("cpu0", 729.6e6, 1510.4e6),
        machine.Frequency("17000000.gpu", 306e6, 624.75e6),
    ]
    assert machine.heats(tmp_path / "nowhere") == []


def test_who_has_a_file_open_is_found(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    path.touch()
    assert machine.opened_by(path) is None
    with path.open():
        assert machine.opened_by(path) == os.getpid()


@pytest.mark.slow
def test_the_outbox_tells_its_depth_and_age(tmp_path: Path) -> None:
    clock = SimulatedClock(START_NS)
    outbox = Outbox(tmp_path / "state" / "outbox.db", "edge-1", 10**6, clock)
    outbox.put([Tombstone(device="edge-1", ranges=[], reason="test", time_ns=START_NS)] * 3)
    outbox.close()
    (tmp_path / "device.toml").write_text(DEVICE.format(camera=MISSING, port=1, url=""))
    found = told(doctor(tmp_path))["outbox"]
    age = (time.time_ns() - START_NS) / NS
    assert found.startswith("ok   3 messages wait, 0.0 of 256 MB, the oldest for ")
    assert float(found.split()[-2]) == pytest.approx(age, abs=60)


@pytest.mark.slow
def test_it_says_which_runtimes_are_there_and_that_the_one_asked_for_is_not(tmp_path: Path) -> None:
    install(tmp_path / "state", "camera")
    text = DEVICE.format(camera=SIMULATED, port=1, url="")
    (tmp_path / "device.toml").write_text(text)
    found = told(doctor(tmp_path))
    assert found["runtime"].startswith("ok   auto of onnxruntime-cpu")
    assert "not onnxruntime-cuda: this ONNX Runtime has no CUDAExecutionProvider" in found["runtime"]
    assert "camera-1 (fp32) on CPUExecutionProvider" in found["encoder camera"]
    (tmp_path / "device.toml").write_text(
        text.replace('station = "press"', 'station = "press"\nruntime = "onnxruntime-cuda"')
    )
    found = told(doctor(tmp_path))
    assert found["runtime"].startswith("FAIL onnxruntime-cuda of onnxruntime-cpu")
    assert "FAIL runtime failed: onnxruntime-cuda was asked for, but" in found["encoder camera"]


@pytest.mark.slow
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
    found = {each["thing"]: (each["well"], f"{each['told']}; {each['mend']}") for each in json.loads(done.stdout)}
    ailing = {thing for thing, (well, _) in found.items() if not well}
    assert ailing == {"cam0", "broker", "repository", "encoder camera", "encoder microphone"}
    for thing, *told in (
        ("cam0", "cannot open /dev/video99", "is it plugged in and free?"),
        ("broker", f"127.0.0.1:{port} does not answer", "start the hub"),
        ("repository", f"{url}/metadata/timestamp.json does not answer", "[repository] url"),
        ("encoder camera", "damaged on disk", "fetched again"),
        ("encoder microphone", "none on this device yet", "publish one"),
    ):
        assert all(word in found[thing][1] for word in told), found[thing]
