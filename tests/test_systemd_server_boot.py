"""Hub, refresh and nightly loop for real, on a machine whose first process is systemd: set up as docs say."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from lineside.parts import HUB, PLANT, TRAIN
from tests import pitch_scene
from tests.line_broker import wait
from tests.line_guest import PLACE, Guest, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]
LINESIDE = f"{PLACE}/bin/lineside"
SERVICE, REFRESH, REFRESH_TIMER, ROLLOUT = HUB.units
TRAINER, TRAINER_TIMER = TRAIN.units


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    made = Guest(tmp_path_factory.mktemp("server"))
    made.build("mosquitto")
    if made.python != f"python{sys.version_info.major}.{sys.version_info.minor}":
        pytest.skip(f"the machine has {made.python}, and the packages of this environment are for another")
    pitch_scene.before_a_night(made.root / "srv", made.root / "srv/recordings", made.root / "srv/stages")
    made.write("/srv/nightly.toml", pitch_scene.NIGHT.format(recordings="/srv/recordings", plant=f"{PLANT}/plant.toml"))
    made.boot()
    yield made
    made.off()


def done(guest: Guest, *words: str) -> str:
    """What a command of ours printed in the machine."""
    ended = guest.do(LINESIDE, *words)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_plant_is_begun_and_its_hub_runs(guest: Guest):
    guest.do("systemctl", "disable", "--now", "mosquitto")  # Debian starts one by itself, on the same port
    done(guest, "deploy", "init", PLANT, "--site", "line1", "--device", "edge-1")
    done(guest, "hub", "install", "--config", f"{PLANT}/plant.toml")
    assert wait(lambda: guest.is_active(SERVICE)), guest.journal(SERVICE)
    assert wait(lambda: "dashboard on http://127.0.0.1:8080" in guest.journal(SERVICE)), guest.journal(SERVICE)[-1500:]
    assert guest.is_active(REFRESH_TIMER)
    assert wait(lambda: "following the rollouts of line1" in guest.journal(ROLLOUT)), guest.journal(ROLLOUT)[-1500:]
    assert guest.show(SERVICE, "NRestarts") == "0"
    assert "all is as it should be" in done(guest, "hub", "install", "--config", f"{PLANT}/plant.toml")


def test_the_hub_can_read_no_key_and_the_operator_reaches_its_broker(guest: Guest):
    pid = guest.show(SERVICE, "MainPID")
    inside = guest.do("nsenter", "-t", pid, "-m", "ls", f"{PLANT}/keys")  # even root sees nothing in its namespace
    assert inside.returncode != 0 or not inside.stdout.strip()
    asked = guest.do("setpriv", "--reuid=lineside-trainer", "--init-groups", "--regid=lineside-trainer", LINESIDE,
                     "deploy", "devices", "--config", f"{PLANT}/plant.toml", "--json")  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    assert [row["device"] for row in json.loads(asked.stdout)] == ["edge-1"]


def test_refresh_signs_without_a_network(guest: Guest):
    before = (guest.root / f"{PLANT[1:]}/repository/metadata/timestamp.json").read_bytes()
    started = guest.do("systemctl", "start", REFRESH)
    assert started.returncode == 0, guest.journal(REFRESH)
    assert (guest.root / f"{PLANT[1:]}/repository/metadata/timestamp.json").read_bytes() != before
    assert wait(lambda: guest.is_active(SERVICE))


def test_the_store_is_backed_up_while_the_hub_runs_and_put_back_while_it_is_stopped(guest: Guest):
    done(guest, "hub", "backup", "--config", f"{PLANT}/plant.toml", "--out", "/srv/line1.db")
    guest.do("systemctl", "stop", SERVICE)
    done(guest, "hub", "restore", "/srv/line1.db", "--config", f"{PLANT}/plant.toml")
    assert f"give {PLANT} to its services" in done(guest, "hub", "install", "--config", f"{PLANT}/plant.toml")
    assert wait(lambda: guest.is_active(SERVICE)), guest.journal(SERVICE)[-1500:]
    assert guest.show(SERVICE, "NRestarts") == "0"


def test_the_timer_runs_a_night_that_says_what_is_missing(guest: Guest):
    done(guest, "train", "install", "--config", "/srv/nightly.toml")
    assert guest.is_active(TRAINER_TIMER)
    guest.do("systemctl", "stop", TRAINER_TIMER)  # it may be its hour
    started = guest.do("systemctl", "start", TRAINER)
    assert started.returncode != 0  # no first stage yet: the service's result says so
    assert guest.show(TRAINER, "ExecMainStatus") == "2"
    assert wait(lambda: "has no stage that passed its gates" in guest.journal(TRAINER))
    reports = list((guest.root / "var/lib/lineside-trainer/reports").glob("*.md"))
    assert len(reports) == 1
    assert "train the first one" in reports[0].read_text()


def test_a_night_in_its_sandbox_learns_and_signs(guest: Guest):
    """Torch, the recordings, the broker, the keys and the repository are all within its reach."""
    guest.do("cp", "-r", "/srv/stages", "/var/lib/lineside-trainer/")
    assert "give /var/lib/lineside-trainer" in done(guest, "train", "install", "--config", "/srv/nightly.toml")
    started = guest.do("systemctl", "start", TRAINER)
    assert started.returncode == 0, guest.journal(TRAINER)[-3000:]
    newest = max((guest.root / "var/lib/lineside-trainer/reports").glob("*.md")).read_text()
    assert "stage 2: signed and in the repository" in newest
    assert "devices could not be asked" not in newest
    assert list((guest.root / PLANT[1:] / "repository/targets").rglob("*.camera-2.onnx"))


def test_both_are_taken_away_and_the_plant_stays(guest: Guest):
    done(guest, "train", "install", "--remove", "--purge")
    assert not (guest.root / "var/lib/lineside-trainer").exists()
    assert (guest.root / "etc/systemd/system/lineside-.service.d/sandbox.conf").exists()  # the hub's too
    assert "lineside-trainer" in (guest.root / "etc/passwd").read_text()
    done(guest, "hub", "install", "--remove", "--purge")
    assert not list((guest.root / "etc/systemd/system").rglob("lineside-*"))
    assert "lineside-" not in (guest.root / "etc/passwd").read_text()
    assert (guest.root / f"{PLANT[1:]}/keys").is_dir()
    assert not guest.is_active(SERVICE)
