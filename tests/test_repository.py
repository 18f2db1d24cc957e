"""The signed repository: what publishing accepts and refuses, whose keys it needs, and that a kill leaves it whole."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from deploy import begin, credentials, repository
from deploy.repository import Pointed, Repository
from lineside import config, targets
from lineside.clock import NS, SimulatedClock
from lineside.errors import ConfigError, ReleaseError
from lineside.plant import PlantConfig
from lineside.release import Gate, Waiver
from lineside.targets import Candidate
from tests import killed as killed_at
from tests import tiny_encoder

DAY_S = 86_400.0
START_NS = 1_760_000_000 * NS
PLANT = PlantConfig(site="line1", devices=["edge-1", "edge-2"])


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock(START_NS)


@pytest.fixture
def repo(tmp_path: Path, clock: SimulatedClock) -> Repository:
    made = repository.of(PLANT, tmp_path, clock)
    assert made.init(PLANT.modalities) == ("camera", "microphone")
    return made


def versions(repo: Repository) -> dict[str, int]:
    return {modality: pointed.version for modality, pointed in repo.pointed().items()}


def state(repo: Repository) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in repo.roles.folder.rglob("*") if path.is_file()}


def take(repo: Repository, *files: Path) -> None:
    """Publish encoders and let every device run them, as a rollout's last ring does."""
    named = {one.modality: one.version for one in repo.publish(files)}
    if new := {modality: version for modality, version in named.items() if versions(repo)[modality] != version}:
        repo.offer(new, candidate())
        repo.settle("7f", taken=True)


def candidate(**fields: object) -> Candidate:
    return Candidate(**{"rollout": "7f", "version": 0, "targets": {}, "percent": 100.0, **fields})  # type: ignore[arg-type]


def refused(check: str, repo: Repository, *files: Path) -> ReleaseError:
    """Publishing is refused by the name of that check, and nothing in the repository is changed."""
    before = state(repo)
    with pytest.raises(ReleaseError) as error:
        repo.publish(files)
    assert error.value.check == check
    assert state(repo) == before
    return error.value


def test_every_role_has_its_key_and_its_time(repo: Repository) -> None:
    holds = repo.refresh()
    assert {role: round(hold.days) for role, hold in holds.items()} == {
        "root": 365,
        "targets": 365,
        "camera": 365,
        "microphone": 365,
        "snapshot": 30,
        "timestamp": 7,
    }
    keys = sorted(repo.roles.keys.glob("*.pem"))
    assert [key.stem for key in keys] == sorted({*holds, "root-1", "root-2", "root-3"} - {"root"})
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert all(b"BEGIN PRIVATE KEY" in key.read_bytes() for key in keys)
    root = repo.roles.read("root").signed
    assert root.consistent_snapshot
    assert len({keyid for role in root.roles.values() for keyid in role.keyids}) == 6
    assert {name: role.threshold for name, role in root.roles.items() if role.threshold > 1} == {"root": 2}
    delegated = repo.roles.read("targets").signed.delegations.roles
    assert {name: (role.paths, role.terminating) for name, role in delegated.items()} == {
        "camera": (["models/camera/*"], True),
        "microphone": (["models/microphone/*"], True),
    }


def test_publishing_names_the_file_and_points_at_it(repo: Repository, tmp_path: Path) -> None:
    files = [tiny_encoder.write(tmp_path, "camera", 1), tiny_encoder.write(tmp_path, "camera", 1, precision="int8")]
    published = repo.publish([*files, tiny_encoder.write(tmp_path, "microphone", 1)])
    assert [(one.modality, one.version, sorted(one.sha256)) for one in published] == [
        ("camera", 1, ["fp32", "int8"]),
        ("microphone", 1, ["fp32"]),
    ]
    signed = repo.roles.read("camera").signed.targets
    assert sorted(signed) == [
        "models/camera/camera-1.int8.onnx",
        "models/camera/camera-1.onnx",
        "models/camera/current.json",
    ]
    file = signed["models/camera/camera-1.onnx"]
    custom = {"version": 1, "space": "s1", "precision": "fp32", "sha256": file.hashes["sha256"]}
    assert file.custom == custom
    stored = repo.roles.folder / "targets" / "models" / "camera" / f"{custom['sha256']}.camera-1.onnx"
    assert stored.read_bytes() == files[0].read_bytes()


def waived(repo: Repository, folder: Path, key: Path, **changes: object) -> Path:
    """An encoder with a failed gate that somebody with a key answers for; `changes` are made after signing."""
    private = load_pem_private_key(key.read_bytes(), None)
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
    told = Waiver(
        stage="stage-1", gate="spread", value=0.99, limit=0.98, reason="still", by="Sato", at_ns=1, key=public
    )
    signed = msgspec.structs.replace(told, signature=private.sign(told.said).hex())
    card = tiny_encoder.card("camera", 1, gates=[Gate("spread", 0.99, 0.98, True)])
    waivers = [msgspec.structs.replace(signed, **changes)]
    card = msgspec.structs.replace(card, certificate=msgspec.structs.replace(card.certificate, waivers=waivers))
    path = folder / "camera-1.onnx"
    path.write_bytes(tiny_encoder.model(card))
    return path


def test_only_the_plant_answers_for_a_failed_gate(repo: Repository, tmp_path: Path) -> None:
    keys = repo.roles.keys
    refused("gates", repo, tiny_encoder.write(tmp_path, "camera", 1, gates=[Gate("spread", 0.99, 0.98, True)]))
    assert "by Sato is not signed by" in str(refused("waiver", repo, waived(repo, tmp_path, keys / "camera.pem")))
    refused("waiver", repo, waived(repo, tmp_path, keys / "targets.pem", reason="nobody said this"))
    repo.publish([waived(repo, tmp_path, keys / "targets.pem")])
    assert versions(repo) == {"camera": 1}


def test_publishing_needs_no_offline_key_and_no_other_modality(repo: Repository, tmp_path: Path) -> None:
    for role in ("root-1", "root-2", "root-3", "targets", "microphone"):
        (repo.roles.keys / f"{role}.pem").unlink()
    repo.publish([tiny_encoder.write(tmp_path, "camera", 1)])
    assert versions(repo) == {"camera": 1}
    assert "microphone.pem" in str(refused("keys", repo, tiny_encoder.write(tmp_path, "microphone", 1)))
    (repo.roles.keys / "timestamp.pem").unlink()
    assert "timestamp.pem" in str(refused("keys", repo, tiny_encoder.write(tmp_path, "camera", 2)))


def test_the_same_publication_twice_is_one(repo: Repository, tmp_path: Path) -> None:
    file = tiny_encoder.write(tmp_path, "camera", 1)
    repo.publish([file])
    before = state(repo)
    assert repo.publish([file])[0].version == 1
    assert state(repo) == before


def test_a_later_version_is_only_added_and_an_offer_names_the_rings(repo: Repository, tmp_path: Path) -> None:
    repo.publish([tiny_encoder.write(tmp_path, "camera", 1)])
    (published,) = repo.publish([tiny_encoder.write(tmp_path, "camera", 2)])
    assert (published.version, published.pointed, sorted(published.sha256)) == (2, False, ["fp32"])
    assert versions(repo) == {"camera": 1}
    repo.offer({"camera": 2}, candidate(devices=["edge-1"], percent=0.0))
    pointed = repo.pointed()["camera"]
    assert (pointed.version, pointed.candidate.version, pointed.candidate.targets) == (
        1, 2, {"fp32": "models/camera/camera-2.onnx"},
    )  # fmt: skip
    assert pointed.wanted("edge-1") == (2, published.sha256)
    assert pointed.wanted("edge-2")[0] == 1
    repo.publish([tiny_encoder.write(tmp_path, "camera", 2, precision="int8")])  # one more precision of what is offered
    assert sorted(repo.pointed()["camera"].candidate.targets) == ["fp32", "int8"]
    before = state(repo)
    repo.offer({"camera": 2}, candidate(devices=["edge-1"], percent=0.0))
    repo.settle("another", taken=True)
    assert state(repo) == before
    repo.settle("7f", taken=False)
    assert (repo.pointer("camera").candidate, repo.pointer("camera").history) == (None, [])
    repo.offer({"camera": 2}, candidate())
    repo.settle("7f", taken=True)
    assert (repo.pointer("camera").version, repo.pointer("camera").history) == (2, [1])
    for version in (None, 9):
        with pytest.raises(ReleaseError) as error:
            repo.published("microphone", version)
        assert error.value.check == "missing"


def test_an_offer_is_measured_beside_all_that_the_others_may_run(repo: Repository, tmp_path: Path) -> None:
    repo.publish([tiny_encoder.write(tmp_path, modality, 1) for modality in PLANT.modalities])
    repo.publish([tiny_encoder.write(tmp_path, modality, 2, space="s2") for modality in PLANT.modalities])
    repo.publish([tiny_encoder.write(tmp_path, "camera", 3)])
    before = state(repo)
    with pytest.raises(ReleaseError) as error:
        repo.offer({"camera": 2}, candidate())
    assert (error.value.check, state(repo) == before) == ("space", True)
    assert "space failed" in repo.refusal({"camera": 2})  # told before anybody tries
    assert not repo.refusal({"camera": 2, "microphone": 2})
    repo.offer({"camera": 2, "microphone": 2}, candidate(percent=10.0))
    with pytest.raises(ReleaseError) as error:  # beside microphone-1 it may run, beside the candidate not
        repo.point("camera", 3)
    assert error.value.check == "space"
    repo.settle("7f", taken=False)
    assert repo.point("camera", 3).version == 3


@pytest.mark.slow
def test_a_modality_goes_back_by_newer_metadata(repo: Repository, tmp_path: Path) -> None:
    for version in (1, 2, 3):
        take(repo, tiny_encoder.write(tmp_path, "camera", version))
    number = repo.roles.read("camera").signed.version
    assert repo.step_back("camera").version == 2
    assert repo.roles.read("camera").signed.version == number + 1
    take(repo, tiny_encoder.write(tmp_path, "camera", 4))
    assert repo.step_back("camera").version == 2  # what ran before 4, not the 3 that was taken back
    assert repo.step_back("camera").version == 1
    with pytest.raises(ReleaseError, match="its first") as error:
        repo.step_back("camera")
    assert error.value.check == "missing"
    assert repo.point("camera", 3) == Pointed("camera", 3, repo.pointed()["camera"].sha256)
    with pytest.raises(ReleaseError, match="was not published"):
        repo.point("camera", 9)


def test_what_is_no_encoder_is_refused(repo: Repository, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no encoder")
    refused("card", repo, tmp_path / "notes.txt")
    refused("card", repo, tmp_path / "nowhere.onnx")
    refused("card", repo, tiny_encoder.write(tmp_path, "camera", 1, precision="fp4"))
    refused("card", repo, tiny_encoder.write(tmp_path, "camera", 0))
    assert "series" in str(refused("role", repo, tiny_encoder.write(tmp_path, "series", 1)))


def test_what_accept_refuses_is_refused(repo: Repository, tmp_path: Path) -> None:
    failed = tiny_encoder.release.Gate("drift", 2.0, 1.0, at_most=True)
    refused("gates", repo, tiny_encoder.write(tmp_path, "camera", 1, gates=[failed]))
    repo.publish([tiny_encoder.write(tmp_path, modality, 1) for modality in ("camera", "microphone")])
    take(repo, *(tiny_encoder.write(tmp_path, modality, 2, space="s2") for modality in ("camera", "microphone")))
    assert versions(repo) == {"camera": 2, "microphone": 2}
    with pytest.raises(ReleaseError) as error:  # one modality alone cannot go back to another space either
        repo.step_back("camera")
    assert error.value.check == "space"
    assert versions(repo) == {"camera": 2, "microphone": 2}


def test_a_version_stands_for_the_same_bytes_for_ever(repo: Repository, tmp_path: Path) -> None:
    first = tiny_encoder.write(tmp_path, "camera", 1)
    (tmp_path / "again").mkdir()
    other = tiny_encoder.write(tmp_path / "again", "camera", 1, space="s2")
    refused("version", repo, first, other)
    repo.publish([first])
    refused("version", repo, other)


def test_metadata_that_somebody_else_wrote_is_not_signed_again(repo: Repository, tmp_path: Path) -> None:
    repo.publish([tiny_encoder.write(tmp_path, "camera", 1)])
    path = repo.roles.folder / "metadata" / "3.camera.json"
    good = path.read_bytes()
    path.write_bytes(good.replace(b'"version": 1', b'"version": 7'))
    refused("signature", repo, tiny_encoder.write(tmp_path, "camera", 2))
    foreign = Metadata.from_bytes(good)
    foreign.sign(CryptoSigner.generate_ed25519())
    path.write_bytes(foreign.to_bytes())
    refused("signature", repo, tiny_encoder.write(tmp_path, "camera", 2))
    path.write_bytes(good[: len(good) // 2])
    refused("metadata", repo, tiny_encoder.write(tmp_path, "camera", 2))
    path.write_bytes(good)
    assert repo.publish([tiny_encoder.write(tmp_path, "camera", 2)])[0].version == 2


def test_files_of_a_publication_that_was_killed_do_not_count(repo: Repository, tmp_path: Path) -> None:
    """timestamp.json is written last: with the old one back, everything else of the new state may lie there."""
    repo.publish([tiny_encoder.write(tmp_path, "camera", 1)])
    timestamp = repo.roles.folder / "metadata" / "timestamp.json"
    old = timestamp.read_bytes()
    take(repo, tiny_encoder.write(tmp_path, "camera", 2))
    timestamp.write_bytes(old)
    assert versions(repo) == {"camera": 1}
    take(repo, tiny_encoder.write(tmp_path, "camera", 3))
    assert versions(repo) == {"camera": 3}
    assert sorted(repo.roles.read("camera").signed.targets) == [
        "models/camera/camera-1.onnx",
        "models/camera/camera-3.onnx",
        "models/camera/current.json",
    ]


@pytest.mark.slow
def test_a_kill_at_any_step_of_a_publication_leaves_the_old_or_the_new(repo: Repository, tmp_path: Path) -> None:
    repo.publish([tiny_encoder.write(tmp_path, "camera", 1), tiny_encoder.write(tmp_path, "microphone", 1)])
    files = [tiny_encoder.write(tmp_path, modality, 2) for modality in PLANT.modalities]
    seen, step, killed = [], 0, True
    while killed:
        folder = tmp_path / f"copy{step}"
        for part in ("keys", "repository"):
            shutil.copytree(tmp_path / part, folder / part)
        copy = repository.of(PLANT, folder, SimulatedClock(START_NS))
        killed = killed_at.before_step(step, lambda copy=copy: take(copy, *files))
        seen.append(versions(copy))
        take(copy, *files)  # and nothing left behind is in the way
        assert versions(copy) == {"camera": 2, "microphone": 2}
        step += 1
    old, new = ({modality: version for modality in PLANT.modalities} for version in (1, 2))
    assert seen[0] == old
    assert seen[-1] == new
    assert all(state in (old, new) for state in seen)
    assert len(seen) > 12


def test_a_refresh_renews_what_ends_soon_and_only_with_its_key(repo: Repository, clock: SimulatedClock) -> None:
    clock.sleep(5 * DAY_S)
    before = repo.roles.read("targets").signed.version
    assert round(repo.refresh()["timestamp"].days) == 7
    assert repo.roles.read("targets").signed.version == before
    clock.sleep(300 * DAY_S)
    for number in (1, 2):  # one of three is not enough
        (repo.roles.keys / f"root-{number}.pem").rename(repo.roles.keys / f"away-{number}")
    holds = repo.refresh()
    assert {role: round(hold.days) for role, hold in holds.items() if role not in ("snapshot", "timestamp")} == {
        "root": 60,
        "targets": 365,
        "camera": 365,
        "microphone": 365,
    }
    assert (holds["root"].level, holds["targets"].level) == ("warning", "fresh")
    (repo.roles.keys / "away-1").rename(repo.roles.keys / "root-1.pem")
    assert round(repo.refresh()["root"].days) == 365
    assert (repo.roles.folder / "metadata" / "2.root.json").is_file()
    assert (repo.roles.folder / "metadata" / "1.root.json").is_file()


def asked(**fields: object) -> begin.Asked:
    standard = {"site": "line1", "devices": ("edge-1",), "modalities": ("camera",), "mqtt_port": 1999, "hub_port": 8099}
    return begin.Asked(**{**standard, "demo": True, **fields})  # type: ignore[arg-type]


def test_init_makes_a_plant_and_says_what_goes_where(tmp_path: Path, clock: SimulatedClock) -> None:
    told = begin.begin(tmp_path / "plant", asked(), clock).told
    plant = config.load(tmp_path / "plant" / "plant.toml", PlantConfig)
    assert (plant.site, plant.devices, plant.modalities) == ("line1", ["edge-1"], ("camera",))
    assert (plant.broker.port, plant.hub.port, plant.hub.demo) == (1999, 8099, True)
    assert any("keep offline" in line and "root-1.pem" in line and "targets.pem" in line for line in told)
    assert any(line.startswith("edge-1: copy") and "edge-1.password" in line and "root.json" in line for line in told)
    secrets = [credentials.path(plant, tmp_path / "plant", user) for user in ("hub", "operator", "edge-1")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    assert len({path.read_text() for path in secrets}) == 3
    assert not any(path.read_text().strip() in line for path in secrets for line in told)


def test_init_again_keeps_what_is_there_and_adds_what_is_new(tmp_path: Path, clock: SimulatedClock) -> None:
    begin.begin(tmp_path, asked(), clock)
    kept = {path: path.read_bytes() for folder in ("keys", "secrets") for path in (tmp_path / folder).iterdir()}
    file = tmp_path / "plant.toml"
    file.write_text(file.read_text().replace('["edge-1"]', '["edge-1", "edge-2"]').replace('a"]', 'a", "series"]'))
    told = begin.begin(tmp_path, asked(devices=(), site=""), clock).told
    assert any("new roles series" in line for line in told)
    assert {path: path.read_bytes() for path in kept} == kept
    assert (tmp_path / "keys" / "series.pem").is_file()
    assert (tmp_path / "secrets" / "edge-2.password").is_file()
    for other in ({"site": "line2"}, {"devices": ("edge-9",)}):
        with pytest.raises(ConfigError, match="is there already"):
            begin.begin(tmp_path, asked(**other), clock)


def test_keys_without_their_repository_begin_no_second_one(tmp_path: Path, clock: SimulatedClock) -> None:
    begin.begin(tmp_path, asked(), clock)
    (tmp_path / "repository").rename(tmp_path / "lost")
    with pytest.raises(ReleaseError, match="move the keys away") as error:
        begin.begin(tmp_path, asked(), clock)
    assert error.value.check == "keys"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"version":1,"targets":{"fp32":"models/microphone/microphone-1.onnx"}}',
        '{"version":2,"targets":{"fp32":"models/camera/camera-1.onnx"}}',
        '{"version":"1","targets":{}}',
    ],
)
def test_a_pointer_to_something_else_is_refused(text: str) -> None:
    with pytest.raises(ReleaseError) as error:
        targets.read_pointer(text.encode(), "camera")
    assert error.value.check == "pointer"


def test_a_pointer_is_small_readable_json(repo: Repository, tmp_path: Path) -> None:
    repo.publish([tiny_encoder.write(tmp_path, "camera", 1)])
    take(repo, tiny_encoder.write(tmp_path, "camera", 2))
    sha = repo.roles.read("camera").signed.targets["models/camera/current.json"].hashes["sha256"]
    stored = repo.roles.folder / "targets" / "models" / "camera" / f"{sha}.current.json"
    assert json.loads(stored.read_text()) == {
        "version": 2,
        "targets": {"fp32": "models/camera/camera-2.onnx"},
        "history": [1],
    }
