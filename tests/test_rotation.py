"""Keys are replaced without a device losing its way: awake, asleep meanwhile, or looking in the middle of one."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Metadata
from tuf.ngclient import Updater as StockClient
from tuf.ngclient.fetcher import FetcherInterface

from deploy import begin, keys, repository
from deploy.repository import Repository
from deploy.roles import Roles
from edge.config import RepositorySettings
from edge.updater import Updater
from lineside import config, targets
from lineside.clock import SimulatedClock, SystemClock
from lineside.errors import ConfigError, ReleaseError
from lineside.plant import PlantConfig, TrustSettings
from tests import killed as killed_at
from tests import tiny_encoder
from tests.test_repository import asked
from tests.test_updater import PLANT, Bench

ROLES = ("root", "targets", "snapshot", "timestamp", "camera", "microphone")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.publish("camera", 1)
    assert made.update() == 1
    yield made
    made.server.close()


def key_ids(roles: Roles) -> dict[str, set[str]]:
    """The keys that count for each role."""
    root, delegations = roles.read("root").signed, roles.read("targets").signed.delegations
    return {name: set(role.keyids) for name, role in (*root.roles.items(), *delegations.roles.items())}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_gets_new_keys_and_the_old_ones_count_no_more(bench: Bench, role: str) -> None:
    roles = bench.repo.roles
    before, files = key_ids(roles), sorted(path.name for path in roles.keys.iterdir())
    told = bench.repo.rotate(role)
    after = key_ids(roles)
    changed = {"snapshot", "timestamp"} if role in ("snapshot", "timestamp") else {role}
    assert {name for name in after if after[name] != before[name]} == changed == set(told.roles)
    assert all(not after[name] & before[name] for name in changed)
    assert set(told.revoked) == set.union(*(before[name] for name in changed))
    assert sorted(path.name for path in roles.keys.iterdir()) == files  # no key of before, none half made
    assert {stat.S_IMODE(path.stat().st_mode) for path in roles.keys.glob("*.pem")} == {0o600}
    assert told.root_version == (1 if role in PLANT.modalities else 2)
    bench.publish("camera", 2)
    assert bench.update() == 2


@pytest.mark.slow
def test_a_device_follows_each_rotation_and_another_slept_through_them(bench: Bench) -> None:
    asleep = bench.updater
    shutil.copytree(bench.folder / "state", bench.folder / "awake")
    awake = Updater(RepositorySettings(url=bench.server.url), bench.folder, bench.folder / "awake", bench.slots)
    for version, role in enumerate(("root", "timestamp", "camera", "targets", "root"), start=2):
        bench.repo.rotate(role)
        bench.publish("camera", version)
        assert awake.fetch("camera").version == version
    bench.updater = asleep
    assert bench.update() == 6
    root = Metadata.from_file(str(bench.folder / "state" / "repository" / "root.json")).signed
    assert (root.version, root.roles["root"].threshold, len(root.roles["root"].keyids)) == (5, 2, 3)


def test_a_new_root_is_signed_by_the_thresholds_of_both(bench: Bench) -> None:
    roles = bench.repo.roles
    bench.repo.rotate("root")
    first, second = (Metadata.from_file(str(roles.folder / "metadata" / f"{version}.root.json")) for version in (1, 2))
    for judge in (first.signed, second.signed):
        assert len(judge.get_verification_result("root", second.signed_bytes, second.signatures).signed) == 3


def test_a_root_of_one_key_is_moved_to_three(tmp_path: Path) -> None:
    """A repository of before: one key, in root.pem, and metadata that does not say for how long it was signed."""
    one = replace_trust(PLANT, TrustSettings(root_keys=1, root_threshold=1))
    repo = repository.of(one, tmp_path, SystemClock())
    repo.init(PLANT.modalities)
    (repo.roles.keys / "root-1.pem").rename(repo.roles.keys / "root.pem")
    repo = repository.of(PLANT, tmp_path, SystemClock())
    repo.publish([tiny_encoder.write(tmp_path, "camera", 1)])
    assert repo.refresh()["root"].of_days == 365
    told = repo.rotate("root")
    assert [Path(file).name for file in told.files] == ["root-1.pem", "root-2.pem", "root-3.pem"]
    assert not (repo.roles.keys / "root.pem").exists()
    root = repo.roles.read("root").signed.roles["root"]
    assert (len(root.keyids), root.threshold) == (3, 2)


def replace_trust(plant: PlantConfig, trust: TrustSettings) -> PlantConfig:
    return PlantConfig(site=plant.site, devices=plant.devices, trust=trust)


@pytest.mark.parametrize(
    ("role", "away"),
    [
        ("root", ("root-1", "root-2")),
        ("targets", ("root-1", "root-3")),
        ("timestamp", ("root-2", "root-3")),
        ("targets", ("snapshot",)),
        ("camera", ("targets",)),
    ],
)
def test_too_few_keys_change_nothing(bench: Bench, role: str, away: tuple[str, ...]) -> None:
    roles = bench.repo.roles
    for name in away:
        (roles.keys / f"{name}.pem").rename(bench.folder / f"{name}.away")
    before = everything(roles)
    with pytest.raises(ReleaseError) as error:
        bench.repo.rotate(role)
    assert error.value.check == "keys"
    assert everything(roles) == before


def everything(roles: Roles) -> dict[Path, bytes]:
    """All files of the repository and its keys."""
    paths = [path for folder in (roles.folder, roles.keys) for path in folder.rglob("*")]
    return {path: path.read_bytes() for path in paths if path.is_file()}


@pytest.mark.parametrize("role", ["root-2", "targets", "snapshot", "timestamp", "camera"])
def test_a_key_that_was_lost_is_replaced(bench: Bench, role: str) -> None:
    (bench.repo.roles.keys / f"{role}.pem").unlink()
    bench.repo.rotate(role.partition("-")[0])
    assert (bench.repo.roles.keys / f"{role}.pem").exists()
    bench.publish("camera", 2)
    assert bench.update() == 2


def test_an_unknown_role_is_refused(bench: Bench) -> None:
    with pytest.raises(ReleaseError, match="known are root, targets, snapshot, timestamp, camera, microphone"):
        bench.repo.rotate("sonar")


@pytest.mark.slow
@pytest.mark.parametrize("role", ["root", "timestamp", "targets", "camera"])
def test_a_kill_at_any_step_leaves_a_repository_that_devices_follow(bench: Bench, role: str) -> None:
    step, killed = 0, True
    while killed:
        folder = bench.folder / f"copy{step}"
        for part in ("keys", "repository"):
            shutil.copytree(bench.folder / part, folder / part)
        copy = repository.of(PLANT, folder, SystemClock())
        killed = killed_at.before_step(step, lambda copy=copy: copy.rotate(role))
        assert follows(bench, copy, step) == 1
        copy.rotate(role)  # what was left half done is completed
        assert not list(copy.roles.keys.glob("*.next.pem"))
        copy.publish([tiny_encoder.write(bench.folder, "camera", 2)])
        copy.point("camera", 2)
        assert follows(bench, copy, step) == 2
        step += 1
    assert step > 10


def follows(bench: Bench, repo: Repository, step: int) -> int:
    """The version that a device which saw the repository before is to run by what the copy says now."""
    state = bench.folder / f"state{step}"
    if not state.exists():
        shutil.copytree(bench.folder / "state", state)
    client = StockClient(
        metadata_dir=str(state / "repository"),
        metadata_base_url="http://plant/metadata/",
        target_dir=str(state),
        target_base_url="http://plant/targets/",
        fetcher=Folder(repo.roles.folder),
        bootstrap=(bench.folder / "root.json").read_bytes(),
    )
    client.refresh()
    info = client.get_targetinfo("models/camera/current.json")
    return targets.read_pointer(Path(client.download_target(info)).read_bytes(), "camera").version


class Folder(FetcherInterface):
    """A web server's folder without the server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self._folder / url.removeprefix("http://plant/")
        if not path.exists():
            raise DownloadHTTPError(f"no {path}", 404)
        return iter([path.read_bytes()])


def test_init_hands_out_the_newest_root_that_can_be_followed_to(tmp_path: Path) -> None:
    clock = SystemClock()
    begin.begin(tmp_path, asked(), clock)
    plant = config.load(tmp_path / "plant.toml", PlantConfig)
    repo = repository.of(plant, tmp_path, clock)
    repo.rotate("root")
    begin.hand_out(repo, tmp_path)
    assert Metadata.from_file(str(tmp_path / "root.json")).signed.version == 2
    forged = repo.roles.read("root")
    forged.signed.version = 3
    forged.sign(keys.CryptoSigner.generate_ed25519())
    forged.to_file(str(repo.roles.folder / "metadata" / "3.root.json"))
    with pytest.raises(ReleaseError) as error:
        begin.hand_out(repo, tmp_path)
    assert error.value.check == "signature"
    assert Metadata.from_file(str(tmp_path / "root.json")).signed.version == 2


def test_the_plant_file_rules_how_long_things_hold(tmp_path: Path) -> None:
    trust = TrustSettings(offline_days=20, timestamp_days=45, snapshot_days=60)
    repo = repository.of(replace_trust(PLANT, trust), tmp_path, SimulatedClock(10**18))
    repo.init(PLANT.modalities)
    holds = repo.roles.holds()
    assert (holds["timestamp"].days, holds["snapshot"].days, holds["camera"].days) == (45, 60, 365)
    assert repo.roles.read("timestamp").signed.unrecognized_fields == {"x-lineside-days": 45}


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("offline_days = 4", "at least twice offline_days"),
        ("root_keys = 1", "root_threshold must be 1 to root_keys"),
        ("root_threshold = 0", "root_threshold must be 1"),
        ("snapshot_days = 3", "may only grow"),
        ("root_days = 30", "may only grow"),
        ("timestamp_hours = 3", "unknown key"),
    ],
)
def test_impossible_times_are_refused(table: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config.loads(f'site = "l"\ndevices = []\n[trust]\n{table}', PlantConfig)


def test_half_of_the_time_is_a_warning_and_its_end_an_alarm(tmp_path: Path) -> None:
    clock = SimulatedClock(10**18)
    repo = repository.of(PLANT, tmp_path, clock)
    repo.init(PLANT.modalities)
    levels = {}
    for day in (0, 3, 1, 3):
        clock.sleep(day * 86_400.0)
        levels[round(repo.roles.holds()["timestamp"].days)] = repo.roles.holds()["timestamp"].level
    assert levels == {7: "fresh", 4: "fresh", 3: "warning", 0: "alarm"}
    assert repo.refresh()["timestamp"].level == "fresh"
