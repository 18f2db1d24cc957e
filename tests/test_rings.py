"""What follows from a rollout's record and from what devices say: every way from ring to ring, and every way out."""

from __future__ import annotations

import msgspec
import pytest

from deploy import rollout
from lineside.clock import NS
from lineside.config import loads
from lineside.errors import ConfigError, ReleaseError
from lineside.messages import Installed
from lineside.plant import PlantConfig
from lineside.rollout_progress import Seen, progress
from lineside.rollout_record import Policy, Record, Ring, rings
from lineside.targets import Terms

DEVICES = [f"edge-{number}" for number in range(20)]
POLICY = Policy(approve=False, soak_s=60, failures=0.0, away=0.0, ring_s=3600, patience_s=7200, unwell_s=120)


def begun(devices: list[str] = DEVICES, **policy: object) -> Record:
    """A rollout of camera 2 whose first ring, edge-0, opened at time 0; half of the others, then all, come after."""
    made = Record(
        rollout="7f",
        versions={"camera": 2},
        rings=rings(["edge-0"], [50, 100]),
        policy=msgspec.structs.replace(POLICY, **policy),
        terms=Terms(),
        state="open",
        since_ns=0,
    )
    return rollout.begin(made, devices, 0)


def says(version: int, phase: str = "steady", rollout: str = "7f", reason: str = "", **others: object) -> Seen:
    """A device that is online and says this of its camera."""
    camera = Installed(
        version=version,
        sha256="",
        precision="fp32",
        since_ns=0,
        rollout=rollout,
        candidate=2,
        phase=phase,
        reason=reason,
    )
    return Seen(**{"online": True, "encoders": {"camera": camera}, **others})


HAS = says(2)
OLD = says(1, rollout="")


def after(record: Record, seconds: float, seen: dict[str, Seen]) -> Record:
    return rollout.look(record, seen, DEVICES, round(seconds * NS))


def everybody(record: Record, seen: Seen) -> dict[str, Seen]:
    return {device: seen if device in record.members(DEVICES) else OLD for device in DEVICES}


def test_ring_by_ring_to_the_end() -> None:
    record = begun()
    assert record.members(DEVICES) == ["edge-0"]
    assert after(record, 10, {"edge-0": says(1, "shadow")}) == record
    record = after(record, 20, everybody(record, HAS))
    assert (record.state, record.since_ns) == ("soaking", 20 * NS)
    assert after(record, 79, everybody(record, HAS)).state == "soaking"
    record = after(record, 80, everybody(record, HAS))
    assert (record.state, record.ring, record.candidate().percent) == ("open", 1, 50)
    second = record.members(DEVICES)
    assert "edge-0" in second
    assert 3 < len(second) < 17
    assert "edge-0" not in record.fresh(DEVICES)
    record = after(after(record, 100, everybody(record, HAS)), 160, everybody(record, HAS))
    assert (record.state, record.ring, record.members(DEVICES)) == ("open", 2, DEVICES)
    record = after(after(record, 200, everybody(record, HAS)), 260, everybody(record, HAS))
    assert record.state == "finished"
    assert after(record, 9e9, {}) == record
    told = [event.text.partition(":")[0] for event in record.events]
    assert told[:3] == ["ring 1 of 3 opened", "ring 1 has it, watched for 60 s", "ring 2 of 3 opened"]
    assert told[-2:] == ["ring 3 has it, watched for 60 s", "finished"]


def test_a_person_is_waited_for_and_not_for_ever() -> None:
    record = begun(approve=True, soak_s=0)
    with pytest.raises(ReleaseError, match="is open in ring 1 of 3"):
        rollout.promote(record, NS)
    record = after(record, 10, everybody(record, HAS))
    assert record.state == "approval"
    assert after(record, 7209, everybody(record, HAS)).state == "approval"
    assert after(record, 7211, everybody(record, HAS)).reason == "approval for more than 120 min"
    record = rollout.promote(record, 20 * NS)
    assert (record.state, record.ring, record.since_ns) == ("open", 1, 20 * NS)
    soaking = after(begun(), 10, {"edge-0": HAS})
    assert rollout.promote(soaking, 11 * NS).ring == 1  # a person's word ends the soak


def test_a_pause_takes_no_time_from_a_ring() -> None:
    record = rollout.pause(begun(), 3000 * NS)
    assert record.candidate().paused
    assert after(record, 9000, {"edge-0": OLD}) == record
    assert after(record, 10_201, {"edge-0": OLD}).reason == "paused for more than 120 min"
    record = rollout.resume(record, 9000 * NS)
    assert (record.state, record.candidate().paused) == ("open", False)
    assert after(record, 9599, {"edge-0": OLD}).state == "open"
    assert after(record, 9601, {"edge-0": OLD}).state == "aborted"
    with pytest.raises(ReleaseError, match="is not paused but open"):
        rollout.resume(record, 0)
    for word in (rollout.pause, rollout.promote, lambda record, now: rollout.abort(record, "no", now)):
        with pytest.raises(ReleaseError):
            word(rollout.abort(record, "enough", 0), 0)


def test_a_device_that_failed_ends_it_with_its_reason() -> None:
    record = after(begun(), 10, {"edge-0": says(1, "failed", reason="shadow: anomalies is 0.3, limit 0.02")})
    told = "1 of 1 devices failed (edge-0: shadow: anomalies is 0.3, limit 0.02)"
    assert (record.state, record.reason) == ("aborted", told)


def test_a_share_may_fail_and_one_more_may_not() -> None:
    record = msgspec.structs.replace(begun(failures=0.1, soak_s=0), ring=2)
    seen = dict.fromkeys(DEVICES, HAS) | dict.fromkeys(DEVICES[:2], says(1, "failed", reason="no"))
    assert after(record, 1, seen).state == "finished"
    assert after(record, 1, {**seen, "edge-2": says(1, "failed", reason="no")}).state == "aborted"


def test_who_is_away_holds_nobody_up_beyond_a_share_or_the_time_limit() -> None:
    record = msgspec.structs.replace(begun(soak_s=0), ring=2)
    gone = record.fresh(DEVICES)[0]
    seen = {**dict.fromkeys(DEVICES, HAS), gone: Seen()}
    assert progress(record, gone, Seen(), 0)[0] == "away"
    assert after(record, 3599, seen).state == "open"
    assert after(record, 3601, seen).state == "finished"
    lenient = msgspec.structs.replace(record, policy=msgspec.structs.replace(record.policy, away=0.5))
    assert after(lenient, 1, seen).state == "finished"
    assert after(begun(), 3601, {}).reason == "no device took it within 60 min"


def test_who_is_there_and_not_done_in_time_ends_it() -> None:
    record = after(begun(), 3601, {"edge-0": says(1, "waiting", reason="maintenance from 22:00")})
    assert record.reason == "ring 1 was not done after 60 min (edge-0: waiting: maintenance from 22:00)"
    doubted = Seen(online=True, refused="signed by another key than at first")
    assert "edge-0: signed by another key" in after(begun(), 3601, {"edge-0": doubted}).reason


def test_a_new_problem_that_lasts_counts_as_failed_and_an_old_one_does_not() -> None:
    old, new = {"mic0": "mic0: silent"}, {"mic0": "mic0: silent", "cam0": "cam0: frozen"}
    record = after(begun(soak_s=600), 10, {"edge-0": says(1, "shadow", problems=old)})
    record = after(record, 20, {"edge-0": says(2, problems=old)})
    assert record.state == "soaking"
    record = after(record, 30, {"edge-0": says(2, problems=new)})
    assert after(record, 100, {"edge-0": says(2, problems=old)}).unwell == {}
    record = after(record, 149, {"edge-0": says(2, problems=new)})
    assert record.state == "soaking"
    record = after(record, 151, {"edge-0": says(2, problems=new)})
    assert "edge-0: unwell since it has it: cam0: frozen" in record.reason


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (OLD, "busy"),
        (says(2, rollout="80"), "busy"),
        (says(2, "probation"), "busy"),
        (says(1), "busy"),
        (Seen(online=True, encoders={"microphone": HAS.encoders["camera"]}), "without"),
        (says(2, online=False), "done"),
        (says(1, "failed"), "failed"),
    ],
)
def test_how_far_a_device_is(seen: Seen, expected: str) -> None:
    assert progress(begun(), "edge-0", seen, 0)[0] == expected


def test_rings_that_add_nobody_are_left_out() -> None:
    assert begun(["edge-0"]).rings == [Ring(devices=["edge-0"])]
    with pytest.raises(ReleaseError, match="its rings take no device"):
        begun([])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("percent = [10, 100]", "did you mean 'percents'"),
        ("percents = [50, 10, 100]", "percents rise"),
        ("percents = [10, 50]", "percents rise"),
        ("away = 2", "are shares"),
        ("failures = 1.0", "are shares"),
        ("soak_min = -1", "not below 0"),
        ("ring_h = 0.01", "ring_h must hold"),
        ("canary = ['edge-9']", "the canary 'edge-9' is no device"),
        ("terms = { shadow = 4 }", "did you mean 'shadow_s'"),
        ("terms = { shadow_s = 9000 }", "patience_s bounds"),
        ("terms = { agreement = -1 }", "not below 0"),
    ],
)
def test_a_plan_of_rings_is_read_whole_or_refused(text: str, told: str) -> None:
    head = 'site = "line1"\ndevices = ["edge-1"]\n[rollout]\n'
    assert loads(head, PlantConfig).rollout.percents == (10, 50, 100)
    with pytest.raises(ConfigError) as error:
        loads(head + text, PlantConfig)
    assert told in str(error.value)
