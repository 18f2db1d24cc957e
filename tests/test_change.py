"""What a device decides about a change, without any device: edge.change, edge.comparison, edge.hours."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edge.change import (
    MOST_STARTS,
    NEXT,
    Broken,
    Change,
    Choice,
    Done,
    Running,
    Stale,
    Waits,
    advance,
    plan,
    restarted,
    still_wanted,
)
from edge.comparison import LEAST_MOMENTS, SURE, VERY_SURE, Comparison
from edge.config import RepositorySettings
from edge.hours import Hours
from lineside.clock import NS
from lineside.config import loads
from lineside.errors import ConfigError
from lineside.fusion import Judgement
from lineside.targets import Terms

TERMS = Terms(patience_s=100.0)
PHASES = [*NEXT]


def choice(modality: str = "camera", sha256: str = "b", rollout: str = "7f", **more: object) -> Choice:
    return Choice(modality=modality, version=2, sha256=sha256, target="", rollout=rollout, terms=TERMS, **more)


def change(phase: str, **more: object) -> Change:
    return Change(choices={"camera": choice()}, since_ns=0, phase=phase, **more)


def test_a_change_that_goes_well_goes_through_every_phase() -> None:
    now, seen, actions = change("waiting"), [], []
    while now.phase in NEXT:
        now, action = advance(now, Done({now.phase: 1.0}), 5)
        seen.append(now.phase)
        actions.append(action)
    assert seen == ["fetching", "building", "proving", "shadow", "probation", "steady"]
    assert actions == ["", "", "", "", "switch", "commit"]
    assert now.measured == dict.fromkeys(PHASES, 1.0)


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_has_a_time_limit_and_a_cancel(phase: str) -> None:
    on_time, action = advance(change(phase), Waits("why"), 100 * NS)
    assert (on_time.phase, on_time.reason, action) == (phase, "why", "")
    late, action = advance(change(phase), Waits("why"), 101 * NS)
    assert (late.phase, late.reason) == ("failed", f"{phase} took longer than 100 s: why")
    assert action == ("back" if phase == "probation" else "")
    cancelled, action = advance(change(phase), Broken("cancelled", {"anomalies": 0.5}), 5)
    assert (cancelled.phase, cancelled.reason, cancelled.measured) == ("failed", "cancelled", {"anomalies": 0.5})
    assert action == ("back" if phase == "probation" else "")


def test_what_the_plant_or_the_hour_holds_is_not_late() -> None:
    held, _ = advance(change("waiting"), Waits("the rollout is paused", held=True), 10**6 * NS)
    assert held.phase == "waiting"
    free, _ = advance(held, Waits("an anomaly alarm stands raised"), (10**6 + 100) * NS)
    assert free.phase == "waiting"
    assert advance(free, Waits("an anomaly alarm stands raised"), (10**6 + 101) * NS)[0].phase == "failed"


def test_what_was_proven_beside_other_encoders_is_proven_again() -> None:
    again, action = advance(change("shadow"), Stale(), 5)
    assert (again.phase, action) == ("fetching", "")


@pytest.mark.parametrize("phase", PHASES)
def test_an_agent_that_dies_again_and_again_gives_the_change_up(phase: str) -> None:
    now, action = change(phase), ""
    for _ in range(MOST_STARTS):
        now, action = restarted(now, 5)
        assert (now.phase, action) == ("probation" if phase == "probation" else "waiting", "")
        now = msgspec.structs.replace(now, phase=phase)
    now, action = restarted(now, 5)
    if phase == "waiting":  # nothing of the change runs yet: it is not what ends the agent
        assert now.phase == "waiting"
        return
    assert now.phase == "failed"
    assert f"started 4 times during {phase}, limit 3" in now.reason
    assert action == ("back" if phase == "probation" else "")


RUNNING = {"camera": Running("a", "z"), "microphone": Running("a")}


@pytest.mark.parametrize(
    ("choices", "declined", "asked", "back", "sets"),
    [
        ([choice(sha256="a")], {}, [], (), []),
        ([choice()], {}, [], (), [["camera"]]),
        ([choice(), choice("microphone")], {}, [], (), [["camera", "microphone"]]),
        ([choice(), choice("microphone", rollout="80")], {}, [], (), [["microphone"], ["camera"]]),
        ([choice(rollout="")], {}, [], (), [["camera"]]),
        ([choice(sha256="z", rollout="")], {}, [], ("camera",), []),
        ([choice(sha256="z")], {}, [], (), [["camera"]]),  # a candidate proves itself even where it ran before
        ([choice()], {"b": "7f"}, ["camera"], (), []),
        ([choice()], {"b": "7e"}, [], (), [["camera"]]),  # a new rollout of it
        ([choice(rollout="")], {"b": "7f"}, ["camera"], (), []),  # the rollout went on without this device
        ([choice(rollout="")], {"b": ""}, [], (), []),
        ([choice(rollout="")], {"b": ""}, ["camera"], (), [["camera"]]),
        ([choice(sha256="z", rollout="")], {"z": ""}, [], (), []),
    ],
)
def test_what_follows_from_what_the_repository_wants(choices, declined, asked, back, sets) -> None:
    found = plan({one.modality: one for one in choices}, RUNNING, declined, asked)
    assert found.back == back
    assert [[*one] for one in found.sets] == sets


def test_a_change_is_cancelled_when_its_candidate_is_gone_and_goes_on_when_the_rollout_has_ended() -> None:
    begun = change("shadow")
    assert "no more what this device is to run" in still_wanted(begun, {"camera": choice(sha256="a", rollout="")})[1]
    kept, cancelled = still_wanted(begun, {"camera": choice(rollout="")})
    assert (kept, cancelled) == (begun, "")
    paused, cancelled = still_wanted(begun, {"camera": choice(paused=True)})
    assert (paused.paused, cancelled) == (True, "")


def test_maintenance_hours() -> None:
    night, day = Hours.parse("22:00-05:00"), Hours.parse("08:30-08:45")
    assert [night.cover(60 * hour) for hour in (21, 22, 0, 4, 5)] == [False, True, True, True, False]
    assert [day.cover(60 * 8 + minute) for minute in (29, 30, 44, 45)] == [False, True, True, False]
    with pytest.raises(ConfigError, match="are no hours"):
        loads('window = "22-5"', RepositorySettings, "device.toml")


def judged(p_value: float = 0.5, camera: float = 1.0, cosine: float = 0.8, only: str = "") -> Judgement:
    said = {"cam0": camera, "mic0": 1.0}
    said = {only: said[only]} if only else said
    return Judgement(1.0, p_value, said, {}, {} if only else {"cam0+mic0": cosine}, {}, {})


def compared(*moments: tuple[Judgement, Judgement]) -> Comparison:
    made = Comparison({"cam0": "camera", "mic0": "microphone"}, frozenset({"camera"}), 0.01, 2.0)
    for before, after in moments:
        made.hear(before, after)
    return made


def test_equal_encoders_break_no_limit() -> None:
    same = compared(*[(judged(0.5), judged(0.5))] * 100)
    assert same.measured == {"anomalies": 0.0, "agreement": 0.0, "contribution": 0.0}
    assert same.breach(Terms(), SURE) == ""


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (judged(p_value=0.001), "anomalies is 1.000, limit 0.02 (40 moments)"),
        (judged(cosine=0.5), "agreement of cam0+mic0 is 0.300, limit 0.1 (40 moments)"),
        (judged(camera=20.0), "contribution of camera is 0.452, limit 0.25 (40 moments)"),
        (judged(camera=0.0), "contribution of camera is 0.500, limit 0.25 (40 moments)"),
    ],
)
def test_each_limit_is_broken_by_its_name(after: Judgement, told: str) -> None:
    for sure in (SURE, VERY_SURE):
        assert compared(*[(judged(), after)] * 40).breach(Terms(), sure) == told


def test_a_few_anomalies_more_are_chance_and_many_are_not() -> None:
    def one_in(count: int, of: int) -> Comparison:
        return compared(*[(judged(), judged(0.001 if k % count == 0 else 0.5)) for k in range(of)])

    assert one_in(40, 120).breach(Terms(), SURE) == ""  # 3 of 120
    assert "anomalies is 0.100" in one_in(10, 1200).breach(Terms(), SURE)
    assert one_in(10, 40).breach(Terms(), VERY_SURE) == ""


def test_a_process_fault_that_both_see_breaks_nothing() -> None:
    assert compared(*[(judged(0.0001), judged(0.0001))] * 100).breach(Terms(), SURE) == ""


def test_moments_without_a_changed_sensor_say_nothing() -> None:
    quiet = compared(*[(judged(0.5, only="mic0"), judged(0.001, only="mic0"))] * 100)
    assert (quiet.moments, quiet.measured, quiet.breach(Terms(), SURE)) == (0, {}, "")
    few = compared(*[(judged(), judged(0.001))] * (LEAST_MOMENTS - 1))
    assert few.breach(Terms(), SURE) == ""


def test_the_limit_is_rarely_broken_by_chance() -> None:
    """Two encoders that each find one moment in a hundred strange, independently: 120 moments, 2000 times."""
    chance, broken = np.random.default_rng(3), 0
    for _ in range(1000):
        made = compared()
        before, after = chance.random((2, 120)) < 0.01
        for difference in after.astype(float) - before:
            made.anomalies.hear(difference)
        broken += bool(made.breach(Terms(), SURE))
    assert broken / 1000 < 0.02
