"""What is promised of exact protection: T5 to T7 of dns.md in one run, with the published rule beside it."""

import pytest

from trainer.exactness import STEPS, WAYS, measure_exactness

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found():
    return measure_exactness()


def test_enough_steps_are_taken_and_every_head_learns(found):
    assert STEPS >= 200
    assert found.keys() == WAYS.keys()
    assert all(way["moved"] > 1 for way in found.values())


@pytest.mark.parametrize("way", ["held", "rotated"])
def test_old_embeddings_and_similarities_stay_to_the_tenth_digit(found, way):
    assert found[way]["embedding"] <= 1e-10
    assert found[way]["similarity"] <= 1e-10
    assert found[f"{way}, float32"]["embedding"] <= 1e-5
    assert found[f"{way}, float32"]["similarity"] <= 1e-5


def test_dual_keeps_similarities_alone(found):
    assert found["dual"]["similarity"] <= 1e-10
    assert found["dual"]["embedding"] > 1e-2


def test_the_published_rule_drifts_as_if_nothing_were_protected(found):
    assert found["published"]["similarity"] > 1e-2
    assert found["published"]["embedding"] > 1e-2
    assert found["plain"]["embedding"] > 1e-2


@pytest.mark.parametrize("way", ["published", "plain", "dual"])
def test_the_certificate_is_what_all_old_inputs_say(found, way):
    assert found[way]["certificate"] <= 1e-8


def test_the_certificate_of_no_drift_is_at_most_the_root_of_rounding(found):
    assert all(way["told of nothing"] <= 1e-6 for way in found.values() if "told of nothing" in way)
    assert "told of nothing" in found["held"]
