"""Hub and nightly loop as services on a machine: hub.install, trainer.install and their commands, into a folder."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lineside.parts
from hub.install import wanted as wanted_hub
from lineside import config
from lineside.errors import ConfigError
from lineside.parts import HUB, PLANT, TRAIN, Own, Part, Put, owner
from lineside.placing import Changes, Machine
from lineside.plant import PlantConfig
from trainer.install import wanted as wanted_train
from trainer.night_plan import NightPlan

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="puts files of root in place: run it as root")
OPT = "/opt/lineside/bin/lineside"
USERS = {"lineside-hub": 901, "lineside-trainer": 902}
GROUPS = {**USERS, "lineside-plant": 903}
NIGHT = """
plan = "stage.toml"
recordings = ["/srv/recordings"]
plant = "/var/lib/lineside-plant/plant.toml"
release = "canary"
"""


class Image:
    """A machine's files under a folder; `do` makes the accounts that systemd-sysusers would make."""

    def __init__(self, root: Path) -> None:
        self.root, self.commands = root, list[list[str]]()
        self.plant = PlantConfig(site="line1", devices=["edge-1"])
        for name in ("keys/camera.pem", "secrets/edge-1.password", "repository/metadata/1.root.json", "plant.toml"):
            (root / PLANT[1:] / name).parent.mkdir(parents=True, exist_ok=True)
            (root / PLANT[1:] / name).write_text(name)

    def do(self, words: list[str]) -> None:
        self.commands.append(words)
        if words[0] == "systemd-sysusers":
            (self.root / "etc/passwd").write_text("root:x:0:\n" + "".join(f"{n}:x:{i}:\n" for n, i in USERS.items()))
            (self.root / "etc/group").write_text("root:x:0:\n" + "".join(f"{n}:x:{i}:\n" for n, i in GROUPS.items()))

    def machine(self, part: Part, *, live: bool = False) -> Machine:
        return Machine(self.root, self.do, part, live=live)

    def install(self, part: Part, *, live: bool = False) -> Changes:
        puts, owns = self.wanted(part)
        machine = self.machine(part, live=live)
        changes = machine.to_install(puts, False, owns)
        machine.install(puts, changes, owns)
        return changes

    def wanted(self, part: Part) -> tuple[list[Put], list[Own]]:
        if part is HUB:
            return wanted_hub(self.plant, PLANT, OPT, 252)
        file = self.root.parent / "nightly.toml"
        return wanted_train(config.load(file, NightPlan), file, "10.0.0.5", OPT, 252)

    def lying(self) -> set[str]:
        """Files and links under /etc, but for accounts."""
        every = (path for path in (self.root / "etc").rglob("*") if path.is_symlink() or path.is_file())
        names = {str(path.relative_to(self.root)) for path in every}
        return names - {"etc/passwd", "etc/group"}


@pytest.fixture
def image(tmp_path: Path) -> Image:
    (tmp_path / "nightly.toml").write_text(NIGHT)
    (tmp_path / "stage.toml").write_text("epochs = 3\n")
    return Image(tmp_path / "root")


def owned(image: Image, path: str) -> tuple[int, int, int]:
    about = (image.root / PLANT[1:] / path).stat()
    return about.st_uid, about.st_gid, about.st_mode & 0o7777


def test_the_examples_of_parts_and_units_hold():
    assert doctest.testmod(lineside.parts) == (0, 3)


@needs_root
def test_the_hub_gets_units_and_each_service_what_it_may_read_of_the_plant(image: Image):
    image.install(HUB)
    assert image.lying() == {
        "etc/lineside/.installed-hub.json",
        "etc/systemd/system/lineside-hub.service",
        "etc/systemd/system/lineside-refresh.service",
        "etc/systemd/system/lineside-refresh.timer",
        "etc/systemd/system/lineside-rollout.service",
        "etc/systemd/system/lineside-rollout.service.d/broker.conf",
        "etc/systemd/system/lineside-.service.d/sandbox.conf",
        "etc/systemd/system/multi-user.target.wants/lineside-hub.service",
        "etc/systemd/system/multi-user.target.wants/lineside-rollout.service",
        "etc/systemd/system/timers.target.wants/lineside-refresh.timer",
        "etc/sysusers.d/lineside-hub.conf",
    }
    hub, signer, plant = USERS["lineside-hub"], USERS["lineside-trainer"], GROUPS["lineside-plant"]
    assert owned(image, ".") == (hub, plant, 0o2770)
    assert owned(image, "plant.toml") == (0, plant, 0o640)
    assert owned(image, "secrets/edge-1.password") == (hub, plant, 0o660)
    assert owned(image, "keys") == (signer, signer, 0o2700)
    assert owned(image, "keys/camera.pem") == (signer, signer, 0o600)
    assert owned(image, "repository/metadata/1.root.json") == (signer, plant, 0o640)


@needs_root
def test_what_a_person_made_as_root_is_given_to_the_services_the_next_time(image: Image):
    image.install(HUB)
    assert image.install(HUB) == Changes()
    key = image.root / PLANT[1:] / "keys/microphone.pem"
    key.write_text("new")
    os.chown(key, 0, 0)
    changes = image.install(HUB)
    assert changes.own == [f"{PLANT}/keys"]
    assert changes.told == [f"give {PLANT}/keys to its services"]
    assert owned(image, "keys/microphone.pem") == (USERS["lineside-trainer"], GROUPS["lineside-trainer"], 0o600)
    (image.root / PLANT[1:] / "repository/new").touch()  # made by one service in the other's folder: theirs already
    os.chown(image.root / PLANT[1:] / "repository/new", USERS["lineside-hub"], GROUPS["lineside-plant"])
    assert image.install(HUB) == Changes()


@needs_root
def test_the_loop_gets_its_timer_its_file_and_its_brokers_address(image: Image):
    image.install(TRAIN)
    assert image.lying() == {
        "etc/lineside/.installed-train.json",
        "etc/lineside/nightly.toml",
        "etc/lineside/stage.toml",
        "etc/lineside/nightly",
        "etc/systemd/system/lineside-trainer.service",
        "etc/systemd/system/lineside-trainer.timer",
        "etc/systemd/system/lineside-trainer.service.d/broker.conf",
        "etc/systemd/system/lineside-.service.d/sandbox.conf",
        "etc/systemd/system/timers.target.wants/lineside-trainer.timer",
        "etc/sysusers.d/lineside-train.conf",
    }
    drop = (image.root / "etc/systemd/system/lineside-trainer.service.d/broker.conf").read_text()
    assert drop == "[Service]\nIPAddressAllow=10.0.0.5\n"
    assert os.readlink(image.root / "etc/lineside/nightly") == "/var/lib/lineside-trainer"


@needs_root
def test_two_parts_share_a_sandbox_which_stays_until_the_last_one_goes(image: Image):
    image.install(HUB)
    image.install(TRAIN)
    assert image.install(HUB) == image.install(TRAIN) == Changes()
    sandbox = image.root / "etc/systemd/system/lineside-.service.d/sandbox.conf"
    sandbox.write_text("an older version's")  # as both noted it: an upgrade, not somebody's edit
    for part in (HUB, TRAIN):
        manifest = image.root / part.manifest[1:]
        noted = json.loads(manifest.read_text())
        noted["/etc/systemd/system/lineside-.service.d/sandbox.conf"] = Put("", b"an older version's").digest
        manifest.write_text(json.dumps(noted))
    assert image.install(HUB).write == ["/etc/systemd/system/lineside-.service.d/sandbox.conf"]
    assert image.install(TRAIN) == Changes()
    trainer = image.machine(TRAIN)
    trainer.remove(trainer.to_remove(purge=True))
    assert sandbox.exists()
    hub = image.machine(HUB)
    hub.remove(hub.to_remove(purge=True))
    assert image.lying() == set()
    assert (image.root / PLANT[1:] / "keys/camera.pem").exists()


@needs_root
def test_an_account_that_another_part_needs_stays(image: Image):
    image.install(HUB)
    image.install(TRAIN)
    live = image.machine(TRAIN, live=True)
    assert live.to_remove(purge=True).after == [["systemctl", "daemon-reload"]]
    live = image.machine(HUB, live=True)
    assert live.to_remove(purge=True).after == [["systemctl", "daemon-reload"], ["userdel", "lineside-hub"]]


@needs_root
def test_on_this_machine_hub_rollouts_and_timers_are_started(image: Image):
    started = [["systemctl", "daemon-reload"], ["systemctl", "restart", "--no-block", HUB.units[0], *HUB.units[2:]]]
    assert image.install(HUB, live=True).after == started
    assert image.install(TRAIN, live=True).after[1] == ["systemctl", "restart", "--no-block", "lineside-trainer.timer"]
    assert image.machine(TRAIN, live=True).to_remove().before == [["systemctl", "disable", "--now", *TRAIN.units]]


def test_a_path_belongs_to_the_longest_that_it_lies_below():
    owns = [Own("/plant", "hub", "plant", 0o770), Own("/plant/keys", "trainer", "trainer", 0o700)]
    assert [owner(path, owns) for path in ("/plant/keys/a.pem", "/plant/keysmith", "/etc")] == [owns[1], owns[0], None]


def test_a_plant_elsewhere_and_one_that_is_scattered_are_refused(image: Image):
    with pytest.raises(ConfigError, match=r"is not where the services look .* mv /srv/plant /var/lib/lineside-plant"):
        wanted_hub(image.plant, "/srv/plant", OPT, 252)
    with pytest.raises(ConfigError, match="lies outside the plant file's folder"):
        wanted_hub(PlantConfig(site="line1", devices=["edge-1"], keys="/media/keys"), PLANT, OPT, 252)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("/srv/recordings", "recordings"), "recordings: is not an absolute path; keep recordings elsewhere"),
        (("/srv/recordings", "/home/me/recordings"), "a service sees nothing under /home"),
        (('"stage.toml"', '"../stage.toml"'), r"plan: is '\.\./stage\.toml'; name it beside this file"),
        (('"stage.toml"', '"gone.toml"'), r"gone\.toml: cannot be read"),
        (("/var/lib/lineside-plant/plant.toml", "/srv/plant.toml"), "services look for it at /var/lib/lineside-plant"),
    ],
)
def test_what_the_loop_could_not_reach_is_refused_by_name(image: Image, change: tuple[str, str], told: str):
    file = image.root.parent / "nightly.toml"
    file.write_text(NIGHT.replace(*change))
    with pytest.raises(ConfigError, match=told):
        wanted_train(config.load(file, NightPlan), file, "", OPT, 252)


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize("part", ["hub", "train"])
def test_the_commands_show_what_they_would_do_and_do_nothing(image: Image, part: str):
    (image.root / PLANT[1:] / "plant.toml").write_text('site = "line1"\ndevices = ["edge-1"]\n')
    file = image.root / PLANT[1:] / "plant.toml" if part == "hub" else image.root.parent / "nightly.toml"
    words = ["--config", str(file), "--root", str(image.root), "--executable", OPT, "--dry-run", "--json"]
    command = [sys.executable, "-m", "lineside", part, "install", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert any(path.endswith(".timer") for path in told["write"])
    assert bool(told["own"]) == (part == "hub")
    assert not (image.root / "etc").exists()
