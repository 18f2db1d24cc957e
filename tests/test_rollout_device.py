"""A device in a rollout: its phases, what makes it fall back, what it refuses by name, and what a restart leaves."""

from __future__ import annotations

import contextlib
import itertools
import resource
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from onnx import helper

from deploy import repository
from edge import freshness
from edge.commissioning import Commissioning
from edge.config import DeviceSettings
from edge.encoder import Encoder
from edge.hours import minute_of
from edge.manifest import Identity
from edge.replay import simulated, through
from edge.slots import Slots
from edge.updater import BUILT_NS, SKEW_S
from lineside.clock import NS, SimulatedClock, SystemClock
from lineside.errors import LinesideError, ReleaseError
from lineside.files import sha256
from lineside.fusion import Encoded
from lineside.manifest import said
from lineside.messages import Command, Embeddings, Installed
from lineside.targets import Terms
from tests import line_encoder
from tests.line_broker import wait
from tests.line_changeover import PLANT, Bench, make, recorded, served, settle, started
from tests.line_device import SITE, START_NS
from tests.line_rollout import AT_ONCE, abort, finish, offer

pytestmark = pytest.mark.slow

WATCHED = Terms(shadow_s=3.0, probation_s=3.0, patience_s=60.0)


class Killed(BaseException):
    """The power is cut."""


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("line"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, recording: Path) -> Path:
    folder = make(tmp_path_factory.mktemp("made"), recording)
    kept = folder / "state" / "commissioning.npz"
    replace(Commissioning.load(kept), faulty=()).save(kept)  # nothing to rehearse: what is tested is not the contract
    return folder


@pytest.fixture
def bench(tmp_path: Path, made: Path, recording: Path) -> Iterator[Bench]:
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    with served(tmp_path) as url:
        found = started(tmp_path, recording, url, clock=SimulatedClock(SystemClock().now_ns()))
        found.recording, found.url = recording, url
        yield found


def again(bench: Bench) -> Bench:
    """The device after its agent was killed and started anew."""
    bench.rollout._trials.stop()
    made = started(bench.folder, bench.recording, bench.url, clock=clock(bench))
    made.recording, made.url = bench.recording, bench.url
    return made


def clock(bench: Bench) -> SimulatedClock:
    return bench.rollout._clock


def encoder(bench: Bench, modality: str = "camera", version: int = 2, **more: object) -> Path:
    return line_encoder.write(bench.folder, modality, version, **more)


def ask(bench: Bench, modality: str = "camera") -> Command:
    command = Command(id=f"id-{modality}", op="update", args={"modality": modality})
    bench.rollout.ask(command)
    return command


def until(bench: Bench, *phases: str, modality: str = "camera") -> Installed:
    """Step until the modality is in one of these phases."""

    def there() -> bool:
        bench.rollout.step()
        return bench.rollout.installed[modality].phase in phases

    assert wait(there), bench.rollout.installed[modality]
    return bench.rollout.installed[modality]


def live(bench: Bench, seconds: float, at_s: float = 0.0) -> list[Embeddings]:
    """So many seconds of the line go by, no faster than a shadow follows."""
    pipeline, made = bench.changeover.pipeline, []
    start_ns = START_NS + round(at_s * NS)
    for message in through(pipeline, simulated(bench.changeover.config, bench.folder, start_ns, seconds)):
        made += [message] if isinstance(message, Embeddings) else []
        assert pipeline.beside is None or wait(lambda: pipeline.beside.behind < 4)
    clock(bench).sleep(seconds)
    return made


def test_only_a_device_whose_ring_is_open_takes_a_candidate_and_reports_it(bench: Bench) -> None:
    path = encoder(bench)
    offer(bench.repo, {"camera": path}, "7f", devices=("edge-9",))
    assert bench.update(asked=False) == "1"
    assert bench.rollout.installed["camera"].rollout == ""
    offer(bench.repo, {"camera": path}, "7f")
    assert bench.update(asked=False) == "2"
    told = bench.rollout.installed["camera"]
    assert (told.phase, told.rollout, told.candidate, told.version, told.previous_version) == ("steady", "7f", 2, 2, 1)
    assert told.sha256 == bench.slots.current("camera").sha256
    assert told.since_ns >= bench.rollout.installed["microphone"].since_ns
    finish(bench.repo, "camera")
    assert bench.update(asked=False) == "2"
    assert bench.rollout.installed["camera"] == told


def test_a_candidate_goes_through_shadow_and_probation_and_its_command_ends_with_the_commit(bench: Bench) -> None:
    offer(bench.repo, {"camera": encoder(bench)}, "7f", WATCHED)
    asked = ask(bench)
    until(bench, "shadow")
    assert bench.version == "1"
    live(bench, 5.0)
    assert bench.rollout.ended() == []
    until(bench, "probation")
    assert bench.version == "2"
    assert bench.rollout.ended() == []
    live(bench, 5.0, at_s=10.0)
    told = until(bench, "steady")
    assert bench.rollout.ended() == [(asked, "")]
    assert told.measured.keys() == {"anomalies", "agreement", "contribution"}
    assert bench.changeover.pipeline.beside is None


def test_nothing_is_decided_on_too_few_moments(bench: Bench) -> None:
    offer(bench.repo, {"camera": encoder(bench)}, "7f", WATCHED)
    bench.rollout.look()
    until(bench, "shadow")
    live(bench, 1.5)
    clock(bench).sleep(3.0)
    bench.rollout.step()
    told = bench.rollout.installed["camera"]
    assert (told.phase, told.reason) == ("shadow", "too few moments were compared")
    clock(bench).sleep(60.0)
    assert "shadow took longer than 60 s: too few" in until(bench, "failed").reason


@pytest.mark.parametrize("phase", ["shadow", "probation"])
def test_a_breach_falls_back_by_itself_and_says_which_limit(bench: Bench, phase: str) -> None:
    terms = msgspec.structs.replace(WATCHED, anomalies=-0.5)
    if phase == "probation":
        terms = msgspec.structs.replace(terms, shadow_s=0.0)
    path = encoder(bench)
    offer(bench.repo, {"camera": path}, "7f", terms)
    asked = ask(bench)
    until(bench, phase)
    live(bench, 7.0)
    told = until(bench, "failed")
    assert told.reason.startswith(f"{phase}: anomalies is 0.000, limit -0.5 (")
    assert (told.version, told.rollout, told.candidate) == (1, "7f", 2)
    assert told.measured["anomalies"] == 0.0
    assert bench.rollout.ended() == [(asked, told.reason)]
    assert bench.slots.current("camera").version == 1
    assert bench.slots.previous("camera") is None  # nobody goes to what failed by a rollback
    assert "the encoder before stays" in bench.rollout.problems["camera"]
    assert bench.update(asked=False) == "1"  # declined
    offer(bench.repo, {"camera": path}, "80", AT_ONCE)
    assert bench.update(asked=False) == "2"  # asked for under a new rollout
    assert bench.rollout.problems == {}


def test_an_encoder_without_sense_is_taken_back_in_probation(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(bench.repo, {"camera": encoder(bench)}, "7f", msgspec.structs.replace(WATCHED, shadow_s=0.0))
    bench.rollout.look()
    until(bench, "probation")
    encode = Encoder.encode

    def blind(self: Encoder, batch: object) -> Encoded:
        made = encode(self, batch)
        return made._replace(embedding=made.embedding * float("nan")) if self.card.version == 2 else made

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode", blind)
        live(bench, 3.0)
    assert "probation: senseless in" in until(bench, "failed").reason
    assert bench.version == "1"


@contextlib.contextmanager
def killed_at_switch(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[None]:
    """The power is cut before the switch of a slot with this number."""
    count, switch = itertools.count(1), Slots.switch

    def cut(self: Slots, modality: str) -> object:
        if next(count) == number:
            raise Killed
        return switch(self, modality)

    with monkeypatch.context() as patch:
        patch.setattr(Slots, "switch", cut)
        yield


def test_encoders_of_another_space_change_as_one_set_and_go_back_as_one(bench: Bench) -> None:
    paths = {modality: encoder(bench, modality, space="new") for modality in PLANT.modalities}
    offer(bench.repo, {"camera": paths["camera"]}, "7e")
    bench.update(asked=False)
    assert "space failed" in bench.rollout.installed["camera"].reason
    abort(bench.repo, "camera")
    offer(bench.repo, paths, "7f")
    assert bench.update(asked=False) == "2"
    assert bench.version_of("microphone") == "2"
    assert {one.rollout for one in bench.rollout.installed.values()} == {"7f"}
    abort(bench.repo, *PLANT.modalities)
    assert bench.update(asked=False) == "1"
    assert bench.version_of("microphone") == "1"


@pytest.mark.parametrize("killed_at", [1, 2])
def test_a_power_cut_between_the_switches_of_a_set_heals_at_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    offer(bench.repo, {modality: encoder(bench, modality, space="new") for modality in PLANT.modalities}, "7f")
    with killed_at_switch(monkeypatch, killed_at), pytest.raises(Killed):
        bench.update(asked=False)
    found = again(bench)
    assert found.changeover.ensemble.versions == {"camera": "2", "microphone": "2"}
    settle(found.rollout)
    assert {one.phase for one in found.rollout.installed.values()} == {"steady"}


@pytest.mark.parametrize("gone", ["camera", "microphone"])
def test_a_set_of_which_a_file_is_gone_at_start_begins_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    offer(bench.repo, {modality: encoder(bench, modality, space="new") for modality in PLANT.modalities}, "7f")
    with killed_at_switch(monkeypatch, 2), pytest.raises(Killed):
        bench.update(asked=False)
    two = next(slot for slot in (bench.slots.current(gone), bench.slots.spare(gone)) if slot and slot.version == 2)
    two.path.unlink()
    found = again(bench)
    assert found.changeover.ensemble.versions == {"camera": "1", "microphone": "1"}
    settle(found.rollout)
    assert found.changeover.ensemble.versions == {"camera": "2", "microphone": "2"}
    assert {one.phase for one in found.rollout.installed.values()} == {"steady"}


@pytest.mark.parametrize("killed_at", [1, 2])
def test_a_power_cut_while_a_set_falls_back_heals_at_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    paths = {modality: encoder(bench, modality, space="new") for modality in PLANT.modalities}
    offer(bench.repo, paths, "7f", msgspec.structs.replace(WATCHED, shadow_s=0.0))
    bench.rollout.look()
    until(bench, "probation")
    with killed_at_switch(monkeypatch, killed_at), pytest.raises(Killed):
        bench.rollout.cancel("camera")
    found = again(bench)
    assert found.changeover.ensemble.versions == {"camera": "1", "microphone": "1"}
    assert "cancelled by a person" in found.rollout.installed["camera"].reason
    assert [found.slots.previous(modality) for modality in PLANT.modalities] == [None, None]


def test_slots_that_do_not_go_together_start_with_the_newest_covered_mix(bench: Bench) -> None:
    """Whatever left them so, and though nothing is known of it: the pair is named."""
    own = {"camera": "new", "microphone": "new"}
    for modality in PLANT.modalities:
        path = encoder(bench, modality, encoder="new", mixes=[own])
        if modality == "camera":
            stage(bench, path)
    found = again(bench)
    assert found.changeover.ensemble.versions == {"camera": "1", "microphone": "1"}
    assert "camera-2 of none was not certified together with microphone-1" in found.changeover.problem
    assert "camera-1 of the other slot runs instead" in found.changeover.problem
    stage(found, bench.folder / "camera-2.onnx")
    stage(found, bench.folder / "microphone-2.onnx")
    whole = again(found)
    assert whole.changeover.ensemble.versions == {"camera": "2", "microphone": "2"}
    assert whole.changeover.problem == ""


def stage(bench: Bench, path: Path) -> None:
    """Put a file in use, unproven."""
    data, modality = path.read_bytes(), path.stem.partition("-")[0]
    spare = bench.slots.spare(modality)
    if spare is None or spare.sha256 != sha256(data):
        bench.slots.stage(modality, data, version=2, expected_sha256=sha256(data), target=path.name)
    bench.slots.switch(modality)


def test_an_abort_in_progress_is_a_cancel_and_after_the_commit_a_way_back_without_download(bench: Bench) -> None:
    path = encoder(bench)
    offer(bench.repo, {"camera": path}, "7f", WATCHED)
    bench.rollout.look()
    until(bench, "shadow")
    abort(bench.repo, "camera")
    bench.rollout.look()
    assert "cancelled: camera-2 is no more what this device is to run" in until(bench, "failed").reason
    offer(bench.repo, {"camera": path}, "80")
    assert bench.update(asked=False) == "2"
    abort(bench.repo, "camera")
    brought, bring = [], bench.rollout._updater.bring
    bench.rollout._updater.bring = lambda choice: brought.append(choice) or bring(choice)
    assert bench.update(asked=False) == "1"
    assert brought == []
    told = bench.rollout.installed["camera"]
    assert (told.phase, told.version, told.candidate, told.previous_version) == ("steady", 1, 2, 2)


def test_a_pause_and_the_maintenance_window_hold_and_a_person_may_cancel(bench: Bench, tmp_path: Path) -> None:
    path = encoder(bench)
    offer(bench.repo, {"camera": path}, "7f", paused=True)
    bench.rollout.look()
    assert until(bench, "waiting").version == 1
    clock(bench).sleep(10_000.0)
    bench.rollout.step()
    assert bench.rollout.installed["camera"].reason == "the rollout is paused"
    offer(bench.repo, {"camera": path}, "7f")
    assert bench.update(asked=False) == "2"
    offer(bench.repo, {"camera": encoder(bench, version=3)}, "80", paused=True)
    bench.rollout.look()
    until(bench, "waiting")
    bench.rollout.cancel("camera")
    told = bench.rollout.installed["camera"]
    assert (told.phase, told.reason, told.version) == ("failed", "cancelled by a person", 2)
    with pytest.raises(ReleaseError, match="no change is in progress"):
        bench.rollout.cancel("camera")


def test_a_device_begins_only_in_its_maintenance_window(tmp_path: Path, made: Path, recording: Path) -> None:
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    now_ns = SystemClock().now_ns()
    minute = minute_of(now_ns)
    first, last = ((minute + ahead) % 1440 for ahead in (120, 180))
    window = f"{first // 60:02}:{first % 60:02}-{last // 60:02}:{last % 60:02}"
    with served(tmp_path) as url:
        bench = started(tmp_path, recording, url, clock=SimulatedClock(now_ns), window=window)
        offer(bench.repo, {"camera": encoder(bench)}, "7f")
        bench.rollout.look()
        until(bench, "waiting")
        bench.rollout.step()
        assert bench.rollout.installed["camera"].reason == f"the maintenance window is {window}"
        clock(bench).sleep(121 * 60)
        until(bench, "steady")


def test_a_station_that_is_not_well_is_waited_for(bench: Bench) -> None:
    offer(bench.repo, {"camera": encoder(bench)}, "7f")
    bench.changeover.commission_again()
    bench.rollout.look()
    until(bench, "waiting")
    bench.rollout.step()
    assert bench.rollout.installed["camera"].reason == "normal running is being learned"
    bench.changeover.pipeline.commissioning = None
    until(bench, "steady")


@pytest.mark.slow
def test_an_agent_that_dies_again_and_again_in_probation_falls_back(bench: Bench) -> None:
    offer(bench.repo, {"camera": encoder(bench)}, "7f", msgspec.structs.replace(WATCHED, shadow_s=0.0))
    command = ask(bench)
    until(bench, "probation")
    for _ in range(3):
        bench = again(bench)
        assert bench.version == "2"
        assert bench.rollout.installed["camera"].phase == "probation"
    bench = again(bench)
    told = bench.rollout.installed["camera"]
    assert (bench.version, told.phase) == ("1", "failed")
    assert "started 4 times during probation" in told.reason
    assert [one.id for one, reason in bench.rollout.ended() if reason] == [command.id]
    assert bench.slots.previous("camera") is None


@pytest.mark.slow
def test_a_change_survives_a_restart_in_shadow(bench: Bench) -> None:
    offer(bench.repo, {"camera": encoder(bench)}, "7f", WATCHED)
    ask(bench)
    until(bench, "shadow")
    found = again(bench)
    assert found.rollout.installed["camera"].phase == "waiting"
    until(found, "shadow")
    live(found, 5.0)
    until(found, "probation")
    live(found, 5.0, at_s=10.0)
    until(found, "steady")
    assert [reason for _, reason in found.rollout.ended()] == [""]


# ---- rollback without network


def test_a_rollback_loses_no_window_of_any_modality(bench: Bench) -> None:
    """Windows are counted, not seconds: the line runs on while another thread takes the camera back."""
    offer(bench.repo, {"camera": encoder(bench)}, "7f")
    bench.update(asked=False)
    done = threading.Event()

    def take_back() -> None:
        bench.rollout.rollback("camera")
        done.set()

    chores, made, at_s = threading.Thread(target=take_back), [], 0.0
    pipeline = bench.changeover.pipeline
    for count, message in enumerate(
        through(pipeline, simulated(bench.changeover.config, bench.folder, START_NS, 600.0))
    ):
        made += [message] if isinstance(message, Embeddings) else []
        if count == 20:
            chores.start()
        if done.is_set():
            at_s = at_s or message.start_ns / NS
            if message.start_ns / NS > at_s + 5:
                break
    chores.join()
    for modality in PLANT.modalities:
        starts = [moment.start_ns for moment in made for one in moment.embeddings if one.modality == modality]
        assert {after - before for before, after in itertools.pairwise(starts)} == {NS // 2}
    versions = [{one.modality: one.version for one in moment.embeddings} for moment in made]
    assert {each["microphone"] for each in versions} == {"1"}
    cameras = [each["camera"] for each in versions]
    assert [version for version, _ in itertools.groupby(cameras)] == ["2", "1"]


def test_a_rollback_needs_neither_network_nor_a_new_look_at_normal_running(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(bench.repo, {"camera": encoder(bench)}, "7f")
    bench.update(asked=False)
    found = again(bench)
    found.rollout._updater = None
    settle(found.rollout)
    monkeypatch.setattr(Commissioning, "encoded", lambda *_: pytest.fail("normal running is learned anew"))
    found.rollout.rollback("camera")
    assert found.version == "1"
    assert found.rollout.installed["camera"].previous_version == 2


# ---- refused by name: the running encoders stay


def without_certificate(bench: Bench) -> Path:
    path = encoder(bench)
    model = onnx.load(path)
    told = {prop.key: prop.value for prop in model.metadata_props if prop.key != "lineside.certificate"}
    del model.metadata_props[:]
    helper.set_model_props(model, told)
    onnx.save(model, path)
    return path


def not_covered(bench: Bench) -> Path:
    return encoder(bench, encoder="new", mixes=[{"camera": "new", "microphone": "new"}])


def not_for_this_runtime(bench: Bench) -> Path:
    path = encoder(bench)
    model = onnx.load(path)
    model.graph.node[0].op_type, model.graph.node[0].domain = "OnlyOnAnotherProvider", "vendor.npu"
    model.opset_import.append(helper.make_opsetid("vendor.npu", 1))
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("make_file", "told"),
    [
        (without_certificate, "card failed: is no encoder of ours (Object missing required field `certificate`"),
        (not_covered, "compatibility failed: camera-2 of none was not certified together with microphone-1 of none"),
        (not_for_this_runtime, "runtime failed: "),
    ],
)
def test_what_is_wrong_with_an_encoder_is_told_and_nothing_changes(bench: Bench, make_file, told: str) -> None:
    before = bench.changeover.ensemble
    offer(bench.repo, {"camera": make_file(bench)}, "7f")
    command = ask(bench)
    reason = until(bench, "failed").reason
    assert told in reason
    assert bench.rollout.ended() == [(command, reason)]
    assert bench.changeover.ensemble is before
    assert bench.slots.current("camera").version == 1


def test_a_target_cut_short_is_refused_and_declined(bench: Bench) -> None:
    path = encoder(bench)
    offer(bench.repo, {"camera": path}, "7f")
    [target] = (bench.repo.roles.folder / "targets" / "models" / "camera").glob("*camera-2.onnx")
    target.write_bytes(target.read_bytes()[:5000])
    bench.rollout.look()
    assert "hash failed" in until(bench, "failed").reason
    assert bench.slots.current("camera").version == 1


@contextlib.contextmanager
def full_disk(bytes_left: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_while_downloading_is_told_and_tried_again(bench: Bench) -> None:
    offer(bench.repo, {"camera": encoder(bench)}, "7f")
    bench.rollout.look()
    with full_disk(20_000):
        assert wait(lambda: bench.rollout.step() or "storage failed" in bench.rollout.installed["camera"].reason)
        assert bench.rollout.installed["camera"].phase == "fetching"
        assert bench.version == "1"
    clock(bench).sleep(6.0)
    until(bench, "steady")


@pytest.mark.parametrize("behind", ["the agent", "the metadata"])
def test_a_clock_in_the_past_refuses_updates_by_name(bench: Bench, behind: str) -> None:
    signed_ns = freshness.signed_ns(bench.folder / "state" / "repository")
    wall_ns = BUILT_NS - NS if behind == "the agent" else signed_ns - round((SKEW_S + 1) * NS)
    bench.rollout._updater._wall_ns = lambda: wall_ns
    offer(bench.repo, {"camera": encoder(bench)}, "7f")
    command = ask(bench)
    settle(bench.rollout)
    [(ended, reason)] = bench.rollout.ended()
    assert ended == command
    assert "clock failed: the wall clock shows" in reason
    assert bench.rollout.problems["repository"] == reason
    assert live(bench, 3.0)  # judging goes on
    bench.rollout._updater._wall_ns = SystemClock().now_ns
    assert bench.update(asked=False) == "2"
    assert bench.rollout.problems == {}


def test_expired_metadata_is_told_by_name(bench: Bench) -> None:
    offer(bench.repo, {"camera": encoder(bench)}, "7f")
    old = repository.of(PLANT, bench.folder, SimulatedClock(SystemClock().now_ns() - 8 * 86_400 * NS))
    old.refresh()
    command = ask(bench)
    settle(bench.rollout)
    assert [(one, "expired failed" in reason) for one, reason in bench.rollout.ended()] == [(command, True)]
    assert bench.version == "1"


# ---- the device's word


def test_the_manifest_is_signed_by_a_key_that_stays(tmp_path: Path) -> None:
    device = DeviceSettings(id="edge-1", site=SITE, station="press")
    installed = {"camera": Installed(version=1, sha256="ab", precision="fp32", since_ns=5)}
    manifest = Identity.of(tmp_path).manifest(device, installed, 7)
    assert (tmp_path / "device.pem").stat().st_mode & 0o777 == 0o600
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(manifest.key))
    sent = msgspec.structs.replace(manifest, epoch=3, seq=9)  # as the outbox numbers it
    key.verify(bytes.fromhex(manifest.signature), said(sent))
    assert Identity.of(tmp_path).public == manifest.key
    (tmp_path / "device.pem").write_text("damaged")
    with pytest.raises(LinesideError, match="is no key"):
        Identity.of(tmp_path)
