"""`lineside deploy init`, `rotate` and `refresh` as an operator sees them: who keeps what, and what is told when."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from deploy import begin, certificates, checklist, repository
from hub.broker import Broker
from lineside import config, mqtt
from lineside.clock import NS, SimulatedClock, SystemClock
from lineside.errors import ConfigError
from lineside.plant import BrokerProcess, PlantConfig
from tests.line_port import free_port
from tests.test_repository import asked

DAY_NS = 86_400 * NS


def mode(path: Path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):04o}"


def lineside(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lineside", "deploy", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_checklist_names_every_secret_with_the_mode_that_it_has(tmp_path: Path) -> None:
    begun = begin.begin(tmp_path, asked(tls=True), SystemClock())
    assert {row.path: row.mode for row in begun.keep} == {row.path: mode(tmp_path / row.path) for row in begun.keep}
    private = {path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock" and mode(path) == "0600"}
    assert {tmp_path / row.path for row in begun.keep if row.mode == "0600"} == private
    assert [mode(tmp_path / folder) for folder in ("keys", "secrets", "tls")] == ["0700"] * 3
    offline = {row.path for row in begun.keep if row.place.startswith("offline")}
    assert offline == {"keys/root-1.pem", "keys/root-2.pem", "keys/root-3.pem", "keys/targets.pem", "tls/ca.key"}
    text = "".join(path.read_text() for path in private)
    assert not any(secret in str(begun) for secret in text.split())


def test_the_checklist_of_root_keys_that_are_away(tmp_path: Path) -> None:
    begin.begin(tmp_path, asked(), SystemClock())
    for path in (tmp_path / "keys").glob("root-*.pem"):
        path.unlink()
    again = begin.begin(tmp_path, asked(devices=(), site=""), SystemClock())
    assert [row.path for row in again.keep if "root-" in row.path] == [f"keys/root-{n}.pem" for n in (1, 2, 3)]
    assert all(row.needed.startswith("2 of 3") for row in again.keep if "root-" in row.path)


def test_a_plant_file_that_asks_for_more_root_keys_is_told(tmp_path: Path) -> None:
    begin.begin(tmp_path, asked(), SystemClock())
    with (tmp_path / "plant.toml").open("a") as file:
        file.write("\n[trust]\nroot_keys = 5\nroot_threshold = 3\n")
    told = begin.begin(tmp_path, asked(devices=(), site="", tls=True), SystemClock()).told
    assert any(
        "2 of 3 keys, [trust] says 3 of 5 keys: run `lineside deploy rotate --role root`" in line for line in told
    )
    assert any(line.startswith("the broker has no TLS yet") for line in told)


@pytest.mark.slow
def test_devices_reach_a_broker_over_tls_by_its_name_only(tmp_path: Path) -> None:
    """The real mosquitto with the certificates of `--tls`: its name is checked, and plain MQTT gets no answer."""
    port = free_port()
    begin.begin(tmp_path, asked(tls=True, listen="127.0.0.1", host="localhost", mqtt_port=port), SystemClock())
    plant = config.load(tmp_path / "plant.toml", PlantConfig)
    broker = Broker(plant, tmp_path, SystemClock())
    broker.start()
    try:
        assert connects(plant.connection("edge-1"), tmp_path)
        assert not connects(msgspec.structs.replace(plant.connection("edge-1"), ca_file=""), tmp_path)
        other = tmp_path / "other"
        certificates.create(other, "other", ("localhost",), SystemClock())
        with pytest.raises(Exception, match="certificate verify failed"):
            connects(msgspec.structs.replace(plant.connection("edge-1"), ca_file="other/ca.crt"), tmp_path)
        shutil.rmtree(other)
    finally:
        broker.stop()


def connects(how: mqtt.BrokerConfig, base: Path) -> bool:
    """Whether somebody is let in that way."""
    client, there = mqtt.client(how, "probe", base), threading.Event()
    client.on_connect = lambda *_: there.set()
    client.connect(how.host, how.port)
    client.loop_start()
    came = there.wait(30 if how.ca_file else 1)
    client.disconnect()
    client.loop_stop()
    return came


def test_a_server_certificate_is_renewed_only_with_the_authoritys_key(tmp_path: Path) -> None:
    certificates.create(tmp_path, "line1", ("plant-1",), SystemClock())
    kept = {name: (tmp_path / name).read_bytes() for name in ("ca.crt", "server.key", "server.crt")}
    certificates.create(tmp_path, "line1", ("plant-1",), SystemClock())
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
    (tmp_path / "server.crt").unlink()
    (tmp_path / "ca.key").rename(tmp_path / "away")
    with pytest.raises(ConfigError, match=r"ca\.key: is not here"):
        certificates.create(tmp_path, "line1", ("plant-1",), SystemClock())
    (tmp_path / "away").rename(tmp_path / "ca.key")
    certificates.create(tmp_path, "line1", ("plant-1",), SystemClock())
    assert (tmp_path / "ca.crt").read_bytes() == kept["ca.crt"]
    assert (tmp_path / "server.crt").read_bytes() != kept["server.crt"]
    check = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "plant-1"]
    verified = subprocess.run(
        [*check, "-CAfile", "ca.crt", "server.crt"], cwd=tmp_path, capture_output=True, check=False
    )
    assert verified.returncode == 0, verified.stderr


@pytest.mark.parametrize(
    ("broker", "told"),
    [
        ({"listen": "10.0.0.7"}, "deploy init --tls"),
        ({"listen": "0.0.0.0", "cert_file": "a", "key_file": "b"}, "needs `host`"),
    ],
)
def test_a_broker_beyond_loopback_needs_certificates_and_a_name(broker: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        BrokerProcess(**broker)  # type: ignore[arg-type]


def test_rows_of_a_plant_without_tls() -> None:
    rows = checklist.rows(PlantConfig(site="l", devices=["edge-1"]), ["root.pem"], 1)
    assert not any("tls" in row.path for row in rows)
    assert rows[0].needed.startswith("1 of 1")


@pytest.mark.slow
def test_init_rotate_and_refresh_as_commands(tmp_path: Path) -> None:
    plant = tmp_path / "plant"
    begun = lineside("init", str(plant), "--site", "line1", "--device", "edge-1", "--modality", "camera", "--json")
    assert begun.returncode == 0, begun.stderr
    assert {row["path"] for row in json.loads(begun.stdout)["keep"]} >= {"keys/root-1.pem", "secrets/edge-1.password"}
    rotated = lineside("rotate", "--role", "timestamp", "--config", str(plant / "plant.toml"), "--json")
    assert json.loads(rotated.stdout)["roles"] == ["snapshot", "timestamp"]
    fresh = lineside("refresh", "--config", str(plant / "plant.toml"), "--json")
    assert fresh.returncode == 0
    assert json.loads(fresh.stdout)["timestamp"]["level"] == "fresh"
    age(plant, days=350)
    late = lineside("refresh", "--config", str(plant / "plant.toml"), "--json")
    assert late.returncode == 5
    assert "expiry failed: ends in 15 days" in late.stderr
    assert {role: hold["level"] for role, hold in json.loads(late.stdout).items()} == {
        "root": "alarm",
        "targets": "alarm",
        "camera": "fresh",
        "snapshot": "fresh",
        "timestamp": "fresh",
    }


def age(folder: Path, days: int) -> None:
    """The plant as if its offline keys had last been here that many days ago."""
    plant = config.load(folder / "plant.toml", PlantConfig)
    before = SimulatedClock(SystemClock().now_ns() - days * DAY_NS)
    repo = repository.of(plant, folder, before)
    repo.roles.renew_root(repo.roles.read("root"))
    repo.roles.commit({"targets": repo.roles.read("targets")})
    for path in [*(folder / "keys").glob("root-*.pem"), folder / "keys" / "targets.pem"]:
        path.unlink()
