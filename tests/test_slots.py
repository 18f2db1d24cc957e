"""Two slots per modality: what is in use survives damage, refusals and a kill at any step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge.slots import Slots
from lineside import files
from lineside.clock import SimulatedClock
from lineside.errors import ReleaseError
from lineside.files import sha256
from tests import killed as killed_at

DATA = {version: f"encoder {version}".encode() * 100 for version in range(1, 5)}


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    return Slots(tmp_path, SimulatedClock(start_ns=7))


def stage(slots: Slots, version: int, modality: str = "camera") -> None:
    data = DATA[version]
    slots.stage(modality, data, version=version, expected_sha256=sha256(data), target=f"{modality}-{version}")


def install(slots: Slots, *versions: int) -> None:
    for version in versions:
        stage(slots, version)
        slots.switch("camera")


def running(slots: Slots) -> tuple[int | None, int | None]:
    """Versions in use and to fall back to; their bytes are checked on the way."""
    current, previous = slots.current("camera"), slots.previous("camera")
    for slot in (current, previous):
        assert slot is None or slot.path.read_bytes() == DATA[slot.version]
    return current and current.version, previous and previous.version


def test_nothing_is_installed_at_first(slots: Slots) -> None:
    assert running(slots) == (None, None)
    assert slots.problem("camera") == ""


def test_staging_changes_nothing_until_the_switch(slots: Slots) -> None:
    stage(slots, 1)
    assert running(slots) == (None, None)
    slot = slots.switch("camera")
    assert (slot.version, slot.target, slot.installed_ns, slot.accepted) == (1, "camera-1", 7, True)
    stage(slots, 2)
    assert running(slots) == (1, None)
    slots.switch("camera")
    assert running(slots) == (2, 1)
    assert slots.current("microphone") is None


def test_current_is_a_relative_link(slots: Slots, tmp_path: Path) -> None:
    install(slots, 1, 2)
    assert os.readlink(tmp_path / "slots" / "camera" / "current") == "b"
    assert (tmp_path / "slots" / "camera" / "current" / "encoder.onnx").read_bytes() == DATA[2]


def test_a_modality_goes_back_and_forth(slots: Slots) -> None:
    install(slots, 1, 2)
    assert slots.rollback("camera").version == 1
    assert running(slots) == (1, 2)
    assert slots.rollback("camera").version == 2


def test_going_back_to_nothing_is_refused(slots: Slots) -> None:
    for versions in ((), (1,)):
        install(slots, *versions)
        with pytest.raises(ReleaseError, match="no previous version") as refused:
            slots.rollback("camera")
        assert refused.value.check == "missing"
    assert running(slots) == (1, None)


def test_a_staged_encoder_that_was_never_switched_to_is_no_way_back(slots: Slots) -> None:
    install(slots, 1)
    stage(slots, 2)
    with pytest.raises(ReleaseError, match="never in use"):
        slots.rollback("camera")
    assert running(slots) == (1, None)


def test_a_switch_without_a_staged_encoder_is_refused(slots: Slots) -> None:
    install(slots, 1)
    with pytest.raises(ReleaseError) as refused:
        slots.switch("camera")
    assert refused.value.check == "missing"


def test_other_bytes_than_signed_are_not_staged(slots: Slots) -> None:
    install(slots, 1, 2)
    with pytest.raises(ReleaseError) as refused:
        slots.stage("camera", DATA[3], version=3, expected_sha256=sha256(DATA[4]), target="camera-3")
    assert refused.value.check == "hash"
    assert running(slots) == (2, 1)


def test_a_damaged_encoder_lets_the_other_slot_stand_in(slots: Slots) -> None:
    install(slots, 1, 2)
    slots.current("camera").path.write_bytes(b"worn flash")
    assert running(slots) == (1, None)
    assert "version 1 of the other slot runs instead" in slots.problem("camera")
    stage(slots, 2)  # into the damaged slot, never over the one that runs
    assert running(slots) == (1, None)
    slots.switch("camera")
    assert running(slots) == (2, 1)
    assert slots.problem("camera") == ""


@pytest.mark.parametrize("name", ["encoder.onnx", "slot.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\xfe"])
def test_any_damage_to_a_slot_is_noticed(slots: Slots, tmp_path: Path, name: str, content: bytes | None) -> None:
    install(slots, 1, 2)
    file = tmp_path / "slots" / "camera" / "b" / name
    file.unlink() if content is None else file.write_bytes(content)
    assert running(slots) == (1, None)
    assert "slot b of camera" in slots.problem("camera")


def test_two_damaged_slots_run_nothing_and_say_so(slots: Slots, tmp_path: Path) -> None:
    install(slots, 1, 2)
    for name in "ab":
        (tmp_path / "slots" / "camera" / name / "encoder.onnx").write_bytes(b"")
    assert running(slots) == (None, None)
    assert "cannot stand in" in slots.problem("camera")
    with pytest.raises(ReleaseError) as refused:
        slots.rollback("camera")
    assert refused.value.check == "hash"
    install(slots, 3)
    assert running(slots) == (3, None)


@pytest.mark.slow
@pytest.mark.parametrize("before", [(), (1,), (1, 2)])
def test_a_kill_at_any_step_leaves_the_old_or_the_new(tmp_path: Path, before: tuple[int, ...]) -> None:
    seen, step, killed = set(), 0, True
    while killed:
        slots = Slots(tmp_path / str(step), SimulatedClock())
        install(slots, *before)
        killed = killed_at.before_step(step, lambda slots=slots: install(slots, 3))
        current, _ = running(slots)
        assert current in {before[-1] if before else None, 3}
        assert slots.problem("camera") == ""
        seen.add(current)
        install(slots, 4)  # and nothing left behind is in the way
        assert slots.current("camera").version == 4
        step += 1
    assert current == 3
    assert len(seen) == 2
    assert step > 8


def test_a_kill_at_any_step_of_a_rollback_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    step, killed = 0, True
    while killed:
        slots = Slots(tmp_path / str(step), SimulatedClock())
        install(slots, 1, 2)
        killed = killed_at.before_step(step, lambda slots=slots: slots.rollback("camera"))
        assert running(slots) == ((2, 1) if killed else (1, 2))
        step += 1
    assert step > 2


def test_the_name_of_a_slot_is_on_the_disk_before_anything_is_told_of_it(
    slots: Slots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder whose name is not fsynced is gone after a power cut, with all that was fsynced in it."""
    synced, sync = list[Path](), files.sync_folder
    monkeypatch.setattr(files, "sync_folder", lambda folder: (synced.append(folder), sync(folder)))
    stage(slots, 1)
    assert {tmp_path, tmp_path / "slots", tmp_path / "slots/camera"} <= set(synced)
