"""Any client of The Update Framework reads our repository, and our client does what the published suite asks.

The suite (theupdateframework/tuf-conformance) drives a command; with a copy of it in LINESIDE_TUF_CONFORMANCE it is run
here on `tests/conformance_client.py`. Without it the equivalents of its cases below and in the tests that COVERED names
stand for it.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest
from tuf.api.metadata import MetaFile
from tuf.ngclient import Updater as StockClient

from deploy import keys
from lineside.clock import NS, SystemClock
from tests.test_attacks import Line, Thief, begin_line, copy_of

HERE = Path(__file__).parent
YESTERDAY = datetime.now(timezone.utc).replace(microsecond=0) - timedelta(days=1)
TOP = ("root", "targets", "snapshot", "timestamp")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begin_line(tmp_path_factory.mktemp("line"))


@pytest.fixture
def line(tmp_path: Path, begun: Path) -> Iterator[Line]:
    yield from copy_of(begun, tmp_path)


def owner(line: Line) -> Thief:
    """Somebody who signs with every key of the plant, and lists what he writes."""
    return Thief(line, *TOP, "camera", "microphone")


def test_the_stock_client_reads_our_repository(line: Line) -> None:
    """python-tuf's own client and fetcher, with nothing of ours but the URL and the root."""
    state = line.folder / "stock"
    state.mkdir()
    client = StockClient(
        metadata_dir=str(state),
        metadata_base_url=f"{line.server.url}/metadata/",
        target_dir=str(state),
        target_base_url=f"{line.server.url}/targets/",
        bootstrap=(line.folder / "root.json").read_bytes(),
    )
    client.refresh()
    info = client.get_targetinfo("models/camera/camera-2.onnx")
    assert Path(client.download_target(info)).read_bytes() == (line.folder / "camera-2.onnx").read_bytes()
    assert client.get_targetinfo("models/camera/camera-9.onnx") is None


def expired(role: str) -> Callable[[Line], None]:
    def does(line: Line) -> None:
        thief = owner(line)
        metadata = thief.read(role)
        metadata.signed.expires = YESTERDAY
        if role in ("snapshot", "timestamp", "root"):
            metadata.signed.version += 1
            thief.write(role, metadata)
        else:
            thief.publish(**{role: metadata})
        if role == "snapshot":
            timestamp = thief.read("timestamp")
            timestamp.signed.version += 1
            timestamp.signed.snapshot_meta = MetaFile(version=metadata.signed.version)
            thief.write("timestamp", timestamp)

    return does


def unsigned(role: str) -> Callable[[Line], None]:
    """The next version of a role, listed as it must be, without a signature."""

    def does(line: Line) -> None:
        thief = owner(line)
        metadata = thief.read(role)
        if role in ("root", "timestamp"):
            metadata.signed.version += 1
        else:
            thief.publish(**({role: metadata} if role != "snapshot" else {}))
            metadata = thief.read(role)
        metadata.signatures.clear()
        name = "timestamp.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
        (thief.folder / name).write_bytes(metadata.to_bytes())

    return does


def away(role: str) -> Callable[[Line], None]:
    def does(line: Line) -> None:
        roles = line.repo.roles
        roles.commit({"targets": roles.read("targets"), "camera": roles.read("camera")})
        (roles.folder / "metadata" / roles._file(role)).unlink()

    return does


def wrong_type(line: Line) -> None:
    folder = line.repo.roles.folder / "metadata"
    (folder / "timestamp.json").write_bytes((folder / line.repo.roles._file("snapshot")).read_bytes())


def version_unlike_its_name(line: Line) -> None:
    thief = owner(line)
    root = thief.read("root")
    root.signed.version += 2
    thief.write("root", root)
    (thief.folder / "3.root.json").rename(thief.folder / "2.root.json")


def below_threshold(line: Line) -> None:
    """Root asks for two keys of the timestamp; one signs, twice."""
    thief = owner(line)
    root = thief.read("root")
    root.signed.add_key(keys.CryptoSigner.generate_ed25519().public_key, "timestamp")
    root.signed.roles["timestamp"].threshold = 2
    root.signed.version += 1
    thief.write("root", root)
    thief.publish()


def more_signatures_than_keys(line: Line) -> None:
    """Root asks for two keys of the timestamp, and names one."""
    thief = owner(line)
    root = thief.read("root")
    root.signed.roles["timestamp"].threshold = 2
    root.signed.version += 1
    thief.write("root", root)


def the_same_key_twice(line: Line) -> None:
    """One key stands for two in the role of the timestamp."""
    thief = owner(line)
    root = thief.read("root").to_dict()
    root["signed"]["version"] += 1
    root["signed"]["roles"]["timestamp"]["keyids"] *= 2
    (thief.folder / "2.root.json").write_bytes(msgspec.json.encode(root))


def unlisted(role: str) -> Callable[[Line], None]:
    def does(line: Line) -> None:
        thief = owner(line)
        snapshot, timestamp = thief.read("snapshot"), thief.read("timestamp")
        del snapshot.signed.meta[f"{role}.json"]
        snapshot.signed.version += 1
        timestamp.signed.version += 1
        timestamp.signed.snapshot_meta = MetaFile(version=snapshot.signed.version)
        thief.write("snapshot", snapshot)
        thief.write("timestamp", timestamp)

    return does


def listed_lower(line: Line) -> None:
    """A newer snapshot lists an older targets."""
    thief = owner(line)
    thief.publish(targets=thief.read("targets"))
    line.updater.fetch("microphone")
    snapshot, timestamp = thief.read("snapshot"), thief.read("timestamp")
    snapshot.signed.meta["targets.json"] = MetaFile(version=snapshot.signed.meta["targets.json"].version - 1)
    snapshot.signed.version += 1
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta = MetaFile(version=snapshot.signed.version)
    thief.write("snapshot", snapshot)
    thief.write("timestamp", timestamp)


def other_hash(role: str) -> Callable[[Line], None]:
    """A role's file is signed as it should be, but is not the one that was listed."""

    def does(line: Line) -> None:
        line.repo.roles.commit({"targets": line.repo.roles.read("targets")})
        thief = owner(line)
        metadata = thief.read(role)
        metadata.signed.unrecognized_fields["x-other"] = True
        thief.write(role, metadata)

    return does


def root_that_is_none(line: Line) -> None:
    (line.folder / "root.json").write_bytes(b'{"signed": {}}')


def root_without_signature(line: Line) -> None:
    root = line.repo.roles.read("root")
    root.signatures.clear()
    (line.folder / "root.json").write_bytes(root.to_bytes())


REFUSED: dict[str, tuple[Callable[[Line], None], str]] = {
    **{f"{role} expired": (expired(role), "expired") for role in (*TOP, "camera")},
    **{f"{role} unsigned": (unsigned(role), "signature") for role in (*TOP, "camera")},
    **{f"{role} 404": (away(role), "missing") for role in ("targets", "snapshot", "timestamp", "camera")},
    **{f"{role} with another hash": (other_hash(role), "mix-and-match") for role in ("snapshot", "targets")},
    "timestamp of another type": (wrong_type, "metadata"),
    "version unlike its name": (version_unlike_its_name, "rollback"),
    "below threshold": (below_threshold, "key"),
    "more signatures than keys": (more_signatures_than_keys, "key"),
    "the same key twice": (the_same_key_twice, "metadata"),
    "targets no longer listed": (unlisted("targets"), "metadata"),
    "camera no longer listed": (unlisted("camera"), "metadata"),
    "targets listed lower": (listed_lower, "rollback"),
    "first root is none": (root_that_is_none, "metadata"),
    "first root without signature": (root_without_signature, "signature"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(line: Line, case: str) -> None:
    does, check = REFUSED[case]
    does(line)
    line.refuses(check)


def test_what_expired_meanwhile_is_no_hindrance(line: Line) -> None:
    """The device slept longer than its timestamp and snapshot held; fields that it does not know are passed over."""
    long_ago = SystemClock().now_ns() - 40 * 86_400 * NS
    line.repository(long_ago).refresh()
    line.refuses("expired")
    root = line.repo.roles.read("root")
    root.signed.unrecognized_fields["x-unknown"] = {"a": [1]}
    line.repo.roles.renew_root(root)
    line.repo.refresh()
    assert line.update() == 2


def test_a_search_ends_at_the_role_that_is_asked(line: Line) -> None:
    """Delegations are terminating: nobody is asked for what the modality's own role does not have."""
    line.server.asked.clear()
    state = line.folder / "stock"
    state.mkdir()
    client = StockClient(
        metadata_dir=str(state),
        metadata_base_url=f"{line.server.url}/metadata/",
        bootstrap=(line.folder / "root.json").read_bytes(),
    )
    assert client.get_targetinfo("models/camera/nothing") is None
    assert not any("microphone" in path for path in line.server.asked)


def test_a_cached_role_is_verified_against_the_key_that_counts_now(line: Line) -> None:
    """The device has camera metadata by the old key; after the rotation it takes the new one's, and only that."""
    line.updater.fetch("camera")
    line.repo.rotate("camera")
    before = (line.folder / "state" / "repository" / "camera.json").read_bytes()
    assert line.update() == 2
    assert (line.folder / "state" / "repository" / "camera.json").read_bytes() != before


# Case of tuf-conformance at eec841c (files test_*.py) → where it is asked of us; not asked is what we do not offer.
COVERED = {
    "test_basic_refresh_requests": "test_updater::test_the_signed_file_arrives_whole_and_is_not_switched_to",
    "test_basic_refresh_trusted_data": "test_attacks::test_what_was_good_last_is_kept",
    "test_implicit_refresh": "test_conformance::test_a_search_ends_at_the_role_that_is_asked",
    "test_invalid_initial_root": "test_conformance::test_refused",
    "test_unsigned_initial_root": "test_conformance::test_refused",
    "test_unsigned_metadata": "test_conformance::test_refused",
    "test_url_and_metadata_version_mismatch": "test_conformance::test_refused",
    "test_timestamp_content_changes": "test_conformance::test_refused",
    "test_basic_metadata_hash_support": "test_conformance::test_the_stock_client_reads_our_repository",
    "test_targets_hash_mismatch": "test_conformance::test_refused",
    "test_snapshot_hash_mismatch": "test_conformance::test_refused",
    "test_metadata_bytes_match": "test_attacks::test_what_was_good_last_is_kept",
    "test_custom_fields": "test_conformance::test_what_expired_meanwhile_is_no_hindrance",
    "test_snapshot_404": "test_conformance::test_refused",
    "test_targets_404": "test_conformance::test_refused",
    "test_timestamp_404": "test_conformance::test_refused",
    "test_incorrect_metadata_type": "test_conformance::test_refused",
    "test_root_expired": "test_conformance::test_refused",
    "test_timestamp_expired": "test_conformance::test_refused",
    "test_snapshot_expired": "test_conformance::test_refused",
    "test_targets_expired": "test_conformance::test_refused",
    "test_expired_local_root": "test_conformance::test_what_expired_meanwhile_is_no_hindrance",
    "test_expired_local_timestamp": "test_conformance::test_what_expired_meanwhile_is_no_hindrance",
    "test_client_downloads_expected_file": "test_updater::test_the_signed_file_arrives_whole_and_is_not_switched_to",
    "test_client_downloads_expected_file_in_sub_dir": "test_conformance::test_the_stock_client_reads_our_repository",
    "test_repository_substitutes_target_file": "test_updater::test_a_target_of_the_same_length_with_other_bytes",
    "test_multiple_changes_to_target": "test_updater::test_a_version_taken_back_comes_from_the_other_slot",
    "test_artifact_cache": "test_updater::test_a_version_taken_back_comes_from_the_other_slot",
    "test_snapshot_does_not_meet_threshold": "test_conformance::test_refused",
    "test_snapshot_has_too_few_keys": "test_conformance::test_refused",
    "test_duplicate_keys": "test_conformance::test_refused",
    "test_duplicate_sig_keyids": "test_conformance::test_refused",
    "test_invalid_sig_in_valid_metadata": "test_attacks::test_refused_by_its_check_and_followed_again_afterwards",
    "test_new_timestamp_version_rollback": "test_updater::test_metadata_older_than_what_was_seen",
    "test_snapshot_rollback": "test_updater::test_newer_timestamp_of_an_older_snapshot",
    "test_targets_role_removal": "test_conformance::test_refused",
    "test_targets_fast_forward_recovery": "test_attacks::test_refused_by_its_check_and_followed_again_afterwards",
    "test_new_snapshot_fast_forward_recovery": "test_attacks::test_refused_by_its_check_and_followed_again_afterwards",
    "test_new_timestamp_fast_forward_recovery": "test_attacks::test_refused_by_its_check_and_followed_again_afterwards",
    "test_targets_rollback": "test_conformance::test_refused",
    "test_targetfile_search": "test_conformance::test_a_search_ends_at_the_role_that_is_asked",
    "test_cached_role_is_verified_against_current_delegator": (
        "test_conformance::test_a_cached_role_is_verified_against_the_key_that_counts_now"
    ),
    "test_delegation_not_in_snapshot": "test_conformance::test_refused",
    "test_root_rotation": "test_rotation::test_a_device_follows_each_rotation_and_another_slept_through_them",
    "test_non_root_rotations": "test_rotation::test_a_role_gets_new_keys_and_the_old_ones_count_no_more",
}
NOT_ASKED = {
    "test_deprecated_keyid_hash_algorithms": "no metadata of ours has them",
    "test_download_with_hash_algorithms": "ours are SHA-256",
    "test_download_with_unknown_hash_algorithm": "ours are SHA-256",
    "test_keytype_and_scheme": "our keys are Ed25519",
    "test_unusual_role_name": "our roles are named as modalities",
    "test_graph_traversal": "our delegations are one level deep",
    "test_static_repository": "repositories of other tools",
    "test_faketime": "a test of the suite's own tools",
}


def test_every_published_case_is_asked_or_said_not_to_be() -> None:
    for where in COVERED.values():
        file, _, name = where.partition("::")
        assert f"def {name}(" in (HERE / f"{file}.py").read_text(), where
    assert not set(COVERED) & set(NOT_ASKED)
    suite = os.environ.get("LINESIDE_TUF_CONFORMANCE")
    if suite:
        lines = [
            line for path in Path(suite).rglob("tuf_conformance/test_*.py") for line in path.read_text().splitlines()
        ]
        published = {line[4:].partition("(")[0] for line in lines if line.startswith("def test_")}
        assert published == set(COVERED) | set(NOT_ASKED)


@pytest.mark.slow
@pytest.mark.skipif(
    "LINESIDE_TUF_CONFORMANCE" not in os.environ, reason="no copy of theupdateframework/tuf-conformance"
)
def test_the_published_suite_passes(tmp_path: Path) -> None:
    client = tmp_path / "client"
    client.write_text(f'#!/bin/sh\nPYTHONPATH={HERE.parent} exec {sys.executable} {HERE}/conformance_client.py "$@"\n')
    client.chmod(client.stat().st_mode | stat.S_IXUSR)
    suite = Path(os.environ["LINESIDE_TUF_CONFORMANCE"]).resolve()
    words = [
        sys.executable,
        "-m",
        "pytest",
        "tuf_conformance",
        "-q",
        f"--entrypoint={client}",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(words, cwd=suite, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
