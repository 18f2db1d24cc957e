"""Wear of a ball screw at stations that were left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.evaluation import ballscrew
from edge.evaluation.ballscrew import OWN, WELL, Screw, Watch, Wear, ahead, begun, early, first, folds, lasting
from lineside.errors import RecordingError

SOURCE = Path(__file__).parents[2] / "shared" / "data" / "dev" / "ballscrew_camera"
needs_data = pytest.mark.skipif(not SOURCE.is_dir(), reason="needs ../shared/data/dev/ballscrew_camera")


def worn(seed: int, stations: int, steps: int, speed: float = 1.0) -> np.ndarray:
    """Stations that look different from each other, wear alike along one direction, and flicker."""
    wear = np.random.default_rng(0).normal(0, 1, 40)
    rng = np.random.default_rng(seed)
    own = rng.normal(0, 5, (stations, 1, 40))
    rates = speed * rng.uniform(0.9, 1.1, (stations, 1, 1))
    return own + 0.1 * rates * np.arange(steps)[None, :, None] * wear + rng.normal(0, 0.3, (stations, steps, 40))


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(RecordingError, match="does not exist"):
        ballscrew.evaluate(tmp_path / "none")


def test_every_station_is_left_out_once():
    assert sorted(np.concatenate(folds(15)).tolist()) == list(range(15))
    assert {len(fold) for fold in folds(15)} == {3}


def test_what_a_station_looks_like_by_itself_is_no_age():
    courses = worn(1, 4, WELL)
    wear = Wear.fits(courses)[1]
    assert np.allclose(begun(courses + 7.0), begun(courses))
    assert np.allclose(wear.ages(courses + 7.0), wear.ages(courses))


def test_an_unseen_station_is_dated_to_a_few_steps():
    ages = Wear.fits(worn(1, 12, WELL))[1].ages(worn(2, 3, WELL))
    assert np.abs(ages - np.arange(WELL))[:, OWN:].mean() < 3


def test_wear_that_is_normal_is_no_drift_and_what_goes_on_beyond_it_is():
    watch = Watch.learn(worn(1, 12, WELL))
    told = [first(watch.p_values(course) <= watch.oldest.reach) for course in worn(3, 20, 70)]
    assert early(told) <= 5  # 1 in 13 is expected
    assert all(step is not None and step < 45 for step in told)


def test_unlike_stations_wear_at_their_own_speed_and_a_fast_one_is_told_early():
    watch = Watch.learn(worn(1, 12, WELL))
    told = [first(watch.p_values(course) <= watch.oldest.reach) for course in worn(4, 10, 40, speed=3.0)]
    assert early(told) == 10


def test_one_picture_alone_is_no_drift():
    watch = Watch.learn(worn(1, 12, WELL))
    (course,) = worn(5, 1, WELL, speed=0.5)
    course[15] += 100 * watch.wear.direction / np.linalg.norm(watch.wear.direction)
    assert watch.wear.ages(course[None])[0, 15] > 2 * WELL
    assert first(watch.p_values(course) <= watch.oldest.reach) is None


def test_the_first_pictures_of_a_station_say_nothing():
    watch = Watch.learn(worn(1, 12, WELL))
    assert (watch.p_values(worn(6, 1, WELL, speed=50.0)[0])[:OWN] == 1.0).all()


def test_lasting_is_the_least_of_three_in_a_row():
    assert lasting(np.array([[5.0, 4.0, 6.0, 7.0, 8.0]])).tolist() == [[5.0, 4.0, 4.0, 4.0, 6.0]]


def test_told_ahead_is_after_the_well_steps_and_before_the_pit():
    assert ahead([24, 25, 39, 40, None, 30], [40, 40, 40, 40, 40, None]) == 2
    assert early([24, 25, None]) == 1


@pytest.fixture(scope="module")
def screw() -> Screw:
    return Screw.read(SOURCE)


@pytest.mark.shared
@needs_data
def test_the_stations_and_their_first_pits_are_those_of_the_manifest(screw):
    assert screw.prepared.shape[:2] == (15, 69)
    assert len(set(screw.stations)) == 15
    assert screw.pits[screw.stations.index("477500_315")] is None
    assert screw.pits[screw.stations.index("277500_315")] == 40


@pytest.mark.shared
@needs_data
def test_stations_left_out_give_no_alarm_while_well_and_drift_before_they_pit(screw):
    everyone, colours = np.arange(len(screw.stations)), screw.colours
    told: list[int | None] = [None for _ in everyone]
    for left_out in folds(len(everyone)):
        watch = Watch.learn(colours[np.setdiff1d(everyone, left_out), :WELL])
        for station in left_out.tolist():
            told[station] = first(watch.p_values(colours[station]) <= watch.oldest.reach)
    assert early(told) <= 1  # 1.15 are expected
    assert ahead(told, screw.pits) >= 12


@pytest.mark.shared
@needs_data
def test_pictures_of_few_stations_are_no_reference_and_it_is_said_why(screw):
    told = ballscrew.told_of_reference(screw)
    assert "13 of 13 channels are refused" in told
    assert "follow each other so closely" in told
