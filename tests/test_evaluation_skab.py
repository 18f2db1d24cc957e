"""Slow series against what their commissioning foretells, and SKAB in its own protocol."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.evaluation import skab
from edge.evaluation.skab_trials import FIT, LIVE, NONE, SEEN, Device, Rates, Rehearsal, Trial, alarmed, invented
from edge.evaluation.wander import HALF, LENGTH, Variogram, Wander
from lineside.errors import RecordingError
from lineside.fusion import Judgement
from lineside.metrics import auroc

DATA = Path(__file__).parents[2] / "shared" / "data" / "dev" / "skab_pump"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/dev/skab_pump beside the repository")
SENSORS = ("a", "b", "c", "d")


def plant(rows, seed, wander=0.1):
    """Four channels: two that only shake, one that also wanders, one that climbs."""
    chance = np.random.default_rng(seed)
    shaking = chance.normal(size=(rows, 4))
    walk, climb = np.cumsum(chance.normal(size=rows)) * wander, np.arange(rows) * 0.02
    return shaking + np.stack([np.zeros(rows), np.zeros(rows), walk, climb], axis=1)


def strayed(rows, well=NONE):
    return Wander.fit(rows, FIT).encode(well)


def test_what_is_well_strays_by_about_one_however_long_ago_commissioning_was():
    strays = np.stack([strayed(plant(FIT + LIVE, seed)) for seed in range(20)])  # (plants, rows, channels, features)
    early, late = strays[:, :200], strays[:, -200:]
    for part in (early, late):
        size = np.median(part, axis=(0, 1))
        assert size.min() > 0.4
        assert size.max() < 1.4


def test_a_shift_is_strange_for_what_shakes_and_not_for_what_wanders():
    rows = plant(FIT + LIVE, 3, wander=0.5)
    moved = rows.copy()
    moved[FIT + 300 :] += 2.0
    before, after = (strayed(each)[400:, :, 0].mean(axis=0) for each in (rows, moved))
    assert before[:2].max() < 2
    assert after[:2].min() > 5
    assert after[2] - before[2] < 2


def test_a_wider_scatter_is_strange_where_it_is_and_the_rows_before_it_are_not_touched():
    rows = plant(FIT + LIVE, 4)
    shaken = rows.copy()
    shaken[FIT + 300 :, 1] *= 3.0
    before, after = strayed(rows), strayed(shaken)
    assert np.allclose(before[: 300 - SEEN], after[: 300 - SEEN])
    assert after[300:, 1, 1].min() > 3
    assert before[400:, 1, 1].mean() < 2


def test_windows_that_are_well_make_a_bump_of_what_wanders_stand_out():
    rows = plant(FIT + LIVE, 13, wander=0.5)
    ends = Wander.fit(rows, FIT).windows
    bumped = rows.copy()
    bumped[FIT + 350 : FIT + 400, 2] += 20.0
    alone, helped = (strayed(bumped, known)[375, 2, 0] for known in (NONE, ends[np.abs(ends - FIT - 390) > 80]))
    assert helped > 1.5 * alone


def test_a_window_foretells_nothing_of_itself_but_something_of_others():
    rows = plant(FIT + LIVE, 14, wander=0.5)
    end = FIT + 400
    alone, helped = strayed(rows), strayed(rows, np.array([end]))
    assert np.array_equal(alone[end - HALF - FIT], helped[end - HALF - FIT])
    assert not np.allclose(alone[end - HALF - FIT + 100, 2], helped[end - HALF - FIT + 100, 2])


@settings(max_examples=20)
@given(st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_units_do_not_matter(scale, offset):
    rows = plant(FIT + 50, 5)
    assert np.allclose(strayed(rows), strayed((rows + offset) * scale), rtol=1e-2, atol=1e-2)


def test_a_channel_that_never_moved_is_finite_and_any_move_of_it_strange():
    rows = plant(FIT + 100, 6)
    rows[:, 0] = 5.0
    still = strayed(rows)
    assert np.isfinite(still).all()
    assert still[:, 0].max() < 1e-3
    rows[FIT + 50 :, 0] = 5.1
    assert strayed(rows)[80:, 0, 0].min() > 100


def test_too_short_or_broken_a_commissioning_is_refused():
    rows = plant(FIT, 7)
    with pytest.raises(ValueError, match="127 rows, at least 128 finite"):
        Wander.fit(rows, 4 * LENGTH - 1)
    rows[3, 1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        Wander.fit(rows, FIT)


def test_a_variogram_knows_noise_from_a_walk():
    chance = np.random.default_rng(8)
    both = np.stack([chance.normal(size=4000), np.cumsum(chance.normal(size=4000))], axis=1)
    found = Variogram.fit(both, 8)
    near, far = found.at(np.array([8, 800])).T
    assert far[0] / near[0] == pytest.approx(1.0, abs=0.3)
    assert far[1] / near[1] > 20
    assert (found.at(np.array([0])) == 0).all()


@pytest.fixture(scope="module")
def device():
    return Device.learn(plant(3000, 9), SENSORS)


def test_a_device_learns_on_one_plant_and_sees_faults_of_another(device):
    trials = list(invented(plant(2000, 10), np.random.default_rng(0)))
    areas, quiet = [], []
    for trial in trials:
        judged = device.judge(trial)
        strange, faulty = np.array([one.evidence for one in judged]), trial.faulty[FIT:]
        areas.append(auroc(strange[~faulty], strange[faulty]))
        quiet.append(alarmed(judged, 0.05)[: faulty.argmax()].mean())
    assert len(trials) == 4
    assert np.mean(areas) > 0.8
    assert np.mean(quiet) < 0.2


def test_the_sensor_that_is_shifted_contributes_most(device):
    rows = plant(FIT + LIVE, 12)
    rows[FIT + 200 :, 1] += 3.0
    last = device.judge(Trial(rows, np.zeros(len(rows), bool)))[-1]
    assert max(last.contributions, key=lambda name: last.contributions[name]) == "b"
    assert sum(last.contributions.values()) == pytest.approx(last.evidence)


def judgements(p_values):
    return [Judgement(-np.log(p), p, {"a": -np.log(p)}, {}, {}, {"a": -np.log(p)}, {}) for p in p_values]


def test_rows_are_alarmed_from_the_onset_to_the_return_to_normal():
    p_values = np.full(120, 0.9)
    p_values[30:70] = 0.001
    p_values[[50, 51]] = 0.5  # too short a calm to be a return
    p_values[80:83] = 0.001  # too few to be an alarm
    assert np.flatnonzero(alarmed(judgements(p_values), 0.05)).tolist() == list(range(30, 70))
    assert np.flatnonzero(alarmed(judgements(p_values[:60]), 0.05)).tolist() == list(range(30, 60))


def test_the_level_keeps_the_budget_at_its_upper_bound():
    rates = dict.fromkeys(skab.LIMITS, Rates(0.5, 0.0, 0.5))
    upper = {limit: 2 * limit for limit in skab.LIMITS}
    assert Rehearsal(rates, upper, 0.8).limit(0.136) == 0.05
    assert Rehearsal(rates, upper, 0.8).limit(0.0) == skab.LIMITS[-1]


def test_rates_are_of_all_rows_together():
    cried, true = [np.array([True, False]), np.array([True, True])], [np.array([True, True]), np.array([True, False])]
    assert Rates.of(cried, true) == Rates(f1=2 / 3, far=1.0, mar=1 / 3)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(RecordingError, match="SKAB"):
        skab.Skab.read(tmp_path)


@pytest.fixture(scope="module")
def data():
    return skab.Skab.read(DATA)


@pytest.mark.shared
@needs_data
def test_what_is_known_beforehand_stands_in_no_test_file(data):
    assert len(data.sensors) == 8
    assert set(data.trials) == set(range(1, 35))
    assert data.spoilt == {2: 296}
    assert sum(len(trial.rows) for trial in data.trials.values()) == 46_806 - 9_405
    assert 8_000 < len(data.run) < 9_405
    assert data.repeated > 0


@pytest.mark.shared
@needs_data
def test_rivals_give_what_the_data_set_tells_of_them(data):
    files = list(data.trials)
    found = skab._by_rival(data, skab.RIVALS["Hotelling T2"]).row("T2", data.trials, files)
    assert found[1:] == pytest.approx((0.758, 0.427, 0.165, 0.794), abs=2e-3)
    assert skab._always(data).row("", data.trials, files)[1:] == pytest.approx((0.698, 1.0, 0.0, 0.5), abs=1e-3)


@pytest.mark.shared
@needs_data
def test_the_pump_is_judged_without_its_labels(data):
    device = Device.learn(data.run[:3000], data.sensors)
    trial = data.trials[skab.SHOWN]
    blind = replace(trial, faulty=np.zeros(len(trial.rows), bool))
    judged, again = device.judge(trial), device.judge(blind)
    assert [one.p_value for one in judged] == [one.p_value for one in again]
    faulty, strange = trial.faulty[FIT:], np.array([one.evidence for one in judged])
    assert len(judged) == len(faulty)
    assert auroc(strange[~faulty], strange[faulty]) > 0.7


@pytest.mark.slow
@pytest.mark.shared
@needs_data
def test_the_section_tells_its_goals_and_beats_the_textbook_by_ranking(tmp_path):
    section = skab.evaluate(DATA)
    measured = {goal.about: goal.measured for goal in section.goals}
    assert len(measured) == 3
    assert all(np.isfinite(value) for value in measured.values())
    rows = {row[0]: row for row in section.tables[0].rows}
    ours = next(row for name, row in rows.items() if str(name).startswith("lineside"))
    assert ours[4] > 0.85
    assert ours[4] > rows["Hotelling T2"][4] > rows["isolation forest"][4]
    assert ours[2] < rows["Hotelling T2"][2] / 2
    assert len(section.plots[0].marks) == 2
