"""The fan's vibration through the device's own code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.evaluation import fan as fans
from edge.evaluation import rivals
from edge.evaluation.fan import AGAIN, P_LIMIT, Fan, Station
from lineside.errors import RecordingError

SOURCE = Path(__file__).parents[2] / "shared" / "data" / "dev" / "fan_vibration"
needs_data = pytest.mark.skipif(not SOURCE.is_dir(), reason="needs ../shared/data/dev/fan_vibration")


@pytest.fixture(scope="module")
def fan() -> Fan:
    return Fan.read(SOURCE)


@pytest.fixture(scope="module")
def low(fan: Fan) -> Station:
    return Station.at(fan, "low")


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(RecordingError, match="does not exist"):
        fans.evaluate(tmp_path / "none")


def test_loudness_hears_no_tilt_and_tilt_no_loudness():
    rng = np.random.default_rng(0)
    windows = rng.normal(0, 1, (400, 3, 200)) * rng.uniform(0.9, 1.1, (400, 1, 1))
    known, ordinary = (rivals.Seen("series", part, np.zeros((200, 1), np.float32)) for part in np.split(windows, 2))
    loud = rivals.Seen("series", 3 * (ordinary.windows - ordinary.windows.mean(axis=2, keepdims=True)), known.features)
    tilted = rivals.Seen("series", ordinary.windows + 1.0, known.features)
    loudness, tilt = rivals.loudness(known), fans.tilt(known)
    assert loudness is not None
    assert np.median(loudness(loud)) > loudness(ordinary).max()
    assert np.allclose(loudness(tilted), loudness(ordinary))
    assert tilt(tilted).min() > tilt(ordinary).max() > tilt(loud).max()


@pytest.mark.shared
@needs_data
def test_what_teaches_and_what_tests_are_different_snippets(fan, low):
    everywhere = Station.at(fan, *fans.SPEEDS)
    for station in (low, everywhere):
        taught = {*station.known.tolist(), *station.learned.tolist()}
        assert len(taught) == len(station.known) + len(station.learned)
        assert {fan.about[row]["split"] for row in taught} == {"train"}
        assert {fan.about[row]["label"] for row in taught} == {"normal"}
    assert (len(low.known), len(low.learned)) == (51, 300)


@pytest.mark.shared
@needs_data
def test_normal_running_gives_no_alarm_and_the_shifted_campaign_drift_within_a_minute(fan, low):
    assert not low.hears(fan.normals("test", "low")).alarms
    shifted = low.hears(fan.rows(deploy="1"))
    assert shifted.standing == 0
    assert (shifted.first("drift") or AGAIN) < AGAIN
    assert shifted.strange > 0.2


@pytest.mark.shared
@needs_data
def test_after_a_minute_of_commissioning_again_the_shifted_campaign_is_normal_and_the_old_one_still_is(fan, low):
    deploy = fan.rows(deploy="1")
    both = np.concatenate([low.known, deploy[:AGAIN]])
    heard = low.hears(deploy, both)
    assert len(heard.p_values) >= len(deploy) - 2
    assert np.mean(heard.p_values[AGAIN:] <= P_LIMIT) <= 0.05
    normal = fan.normal(both)
    assert np.mean(fan.p_values(normal, fan.normals("test", "low")) <= P_LIMIT) <= 0.05
    assert np.mean(fan.p_values(normal, fan.weighted("low")) <= P_LIMIT) > 0.2


@pytest.mark.shared
@needs_data
def test_its_own_normal_running_for_each_speed_sees_the_coin_better_than_one_for_all(fan):
    one = fans._areas(fan, fans.device, dict.fromkeys(fans.SPEEDS, fan.everywhere("train")))
    own = fans._areas(fan, fans.device, {speed: fan.normals("train", speed) for speed in fans.SPEEDS})
    assert own["all"] > one["all"] > 0.85
    assert min(own["low"], own["med"]) > 0.99
