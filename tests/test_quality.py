"""Quality flags: each is found where it is, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lineside.clock import NS
from lineside.quality import FLAGS, Quality
from lineside.windows import Window

rng = np.random.default_rng(1)
NOISE = rng.normal(0, 500, 16_000)
SCENE = rng.integers(30, 220, (12, 16, 3))


def window(modality: str, data: np.ndarray, flags: frozenset[str] = frozenset()) -> Window:
    return Window("s0", modality, 0, NS, 10.0, data, 0, flags)


def sound(data: np.ndarray) -> Window:
    return window("microphone", np.clip(data, -32_768, 32_767).astype(np.int16))


def pictures(scene: np.ndarray, noise: int = 2) -> Window:
    frames = scene + rng.integers(-noise, noise + 1, (4, 12, 16, 3))
    return window("camera", np.clip(frames, 0, 255).astype(np.uint8))


def series(data: np.ndarray) -> Window:
    return window("series", data.astype(np.float32))


BAD = {
    "gap": window("microphone", NOISE.astype(np.int16), frozenset({"gap"})),
    "black": pictures(np.zeros((12, 16, 3), int), noise=1),
    "overexposed": pictures(np.full((12, 16, 3), 255), noise=1),
    "frozen": pictures(SCENE, noise=0),
    "silent": sound(np.zeros(16_000)),
    "clipped": sound(NOISE * 200),
    "dc": sound(np.full(16_000, 8_000) + NOISE / 100),
    "flat": series(np.full((50, 3), 4.2)),
    "not-a-number": series(np.where(np.arange(150).reshape(50, 3) == 70, np.nan, rng.normal(size=(50, 3)))),
}
GOOD = [pictures(SCENE), sound(NOISE), sound(NOISE + 300), sound(NOISE / 200), series(rng.normal(size=(50, 3)))]


def test_every_flag_that_samples_can_have_is_tested() -> None:
    beside = {"absent", "unfit", "senseless", "defocused"}  # three that samples do not show, and one tested below
    assert set(BAD) == set(FLAGS) - beside


@pytest.mark.parametrize("flag", sorted(BAD))
def test_a_bad_window_has_its_flag_alone(flag: str) -> None:
    quality = Quality()
    quality.flags(BAD[flag])
    assert quality.flags(BAD[flag]) - ({"frozen"} - {flag}) == {flag}


@pytest.mark.parametrize("place", range(len(GOOD)))
def test_a_good_window_has_none(place: int) -> None:
    quality = Quality()
    assert quality.flags(GOOD[place]) == frozenset()


def test_one_still_window_is_not_yet_a_frozen_camera_and_motion_ends_it() -> None:
    quality = Quality()
    assert quality.flags(BAD["frozen"]) == frozenset()
    assert quality.flags(BAD["frozen"]) == {"frozen"}
    assert quality.flags(pictures(SCENE)) == frozenset()


def test_sensors_do_not_share_their_memory() -> None:
    quality, data = Quality(), BAD["frozen"].data
    flags = [quality.flags(Window(f"cam{k}", "camera", 0, NS, 4.0, data, 0)) for k in range(3)]
    assert flags == [frozenset()] * 3


wild = st.one_of(
    npst.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.just(3))).map(
        lambda data: window("camera", data)
    ),
    npst.arrays(np.int16, st.integers(1, 500)).map(lambda data: window("microphone", data)),
    npst.arrays(np.float32, st.tuples(st.integers(1, 50), st.integers(1, 4))).map(lambda data: window("series", data)),
)


@pytest.mark.slow
@given(st.lists(wild, min_size=1, max_size=4))
def test_wild_samples_get_known_flags_and_no_warning(windows: list[Window]) -> None:
    quality = Quality()
    with np.errstate(all="raise"):
        for one in windows:
            assert quality.flags(one) <= set(FLAGS)
            if one.modality == "series" and not np.isfinite(one.data).all():
                assert "not-a-number" in quality.flags(one)


# out of focus


def blurred(scene: np.ndarray, px: float) -> Window:
    import cv2

    soft = cv2.GaussianBlur(scene.astype(np.uint8), (0, 0), px)
    return window("camera", np.clip(soft + rng.integers(-2, 3, (4, *scene.shape)), 0, 255).astype(np.uint8))


BLOCKS = np.kron(rng.integers(30, 220, (12, 16, 3)), np.ones((10, 10, 1))).astype(np.uint8)


def test_a_picture_out_of_focus_is_told_until_it_is_sharp_again() -> None:
    quality = Quality()
    told = [quality.flags(blurred(BLOCKS, px)) for px in (0.3, 0.3, 0.5, 5.0, 5.0, 0.3)]
    assert told == [frozenset()] * 3 + [frozenset({"defocused"})] * 2 + [frozenset()]


@pytest.mark.parametrize("light", [0.3, 0.6, 1.1])
def test_light_that_changes_is_not_out_of_focus(light: float) -> None:
    quality = Quality()
    quality.flags(blurred(BLOCKS, 0.3))
    assert not quality.flags(blurred(BLOCKS * light, 0.3))


@pytest.mark.slow
def test_a_camera_that_stays_soft_for_hours_is_taken_as_it_is() -> None:
    quality = Quality()
    quality.flags(blurred(BLOCKS, 0.3))
    soft = blurred(BLOCKS, 4.0)
    moved = Window("s0", "camera", 0, NS, 10.0, soft.data[::-1], 0)
    flags = [quality.flags(one) for _ in range(9_000) for one in (soft, moved)]
    assert flags[0] == {"defocused"}
    assert not flags[-1]
