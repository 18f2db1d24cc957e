"""What makes the hot path fast changes nothing that it finds: windows, quality flags, whitened distances, cells."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from lineside import features, look
from lineside.clock import NS
from lineside.coreset import SHRINKAGE, Coreset, distances, k_center
from lineside.features import CameraPrepare, HalvedPrepare
from lineside.quality import Quality
from lineside.windows import Cutter, Frames, Samples, Window

RNG = np.random.default_rng(5)


def textbook(points: np.ndarray, size: int, asked: np.ndarray) -> np.ndarray:
    """Distances as lineside.coreset defines them, by the whole covariance (f, f)."""
    mean = points.mean(axis=0, dtype=np.float64)
    spread, axes = np.linalg.eigh(np.cov(points.T.astype(np.float64)))
    whiten = axes / np.sqrt(np.maximum(spread, 0.0) + SHRINKAGE * spread.mean() + 1e-12)
    white = ((points - mean) @ whiten).astype(np.float32)
    return distances(((asked - mean) @ whiten).astype(np.float32), white[k_center(white, size)])


@pytest.mark.parametrize(("n", "f"), [(60, 200), (40, 40), (300, 40), (2, 5)])
def test_whitening_along_what_windows_span_gives_the_distances_of_the_whole_covariance(n: int, f: int) -> None:
    points = RNG.normal(size=(n + 20, f)) * np.linspace(0.01, 1, f)
    points = (points / np.linalg.norm(points, axis=1)[:, None]).astype(np.float32)
    made = Coreset.fit(points[:n], 32)
    assert made.whiten.shape[1] <= min(n, f)
    np.testing.assert_allclose(made.distances(points[n:]), textbook(points[:n], 32, points[n:]), rtol=1e-4)


def test_cells_are_means_of_runs_of_neighbours() -> None:
    windows = RNG.integers(0, 255, (2, 3, 50, 33)).astype(np.uint8)
    rows, columns = (np.arange(17) * size // 16 for size in (50, 33))
    wanted = [
        windows[:, :, rows[i] : rows[i + 1], columns[j] : columns[j + 1]].mean(axis=(2, 3))
        for i in range(16)
        for j in range(16)
    ]
    got = look.coarse(windows)
    assert got is not None
    np.testing.assert_allclose(got.reshape(2, 3, 256), np.stack(wanted, axis=2), rtol=1e-5)


def flags(*pictures: np.ndarray) -> frozenset[str]:
    return Quality().flags(Window("cam0", "camera", 0, NS, len(pictures), np.stack(pictures), 0))


@pytest.mark.parametrize("height", [8, 120, 720])
@pytest.mark.parametrize(("level", "flag"), [(3, "black"), (253, "overexposed")])
def test_a_flat_picture_is_told_by_all_of_it(height: int, level: int, flag: str) -> None:
    flat = np.full((height, 64, 3), level, np.uint8)
    assert flags(flat, flat) == {flag}
    lamp = flat.copy()
    lamp[height // 4 : height // 2, 10:30] = 128
    assert flags(flat, lamp) == frozenset()


def test_a_black_picture_is_told_wherever_its_brightest_rows_are() -> None:
    """As bright as they may be without the picture's standard deviation reaching the limit."""
    for first in range(60):
        black = np.full((720, 16, 3), 3, np.uint8)
        black[first::60] = 13
        assert flags(black, black) == {"black"}


def test_pictures_that_differ_in_one_pixel_are_not_frozen() -> None:
    still = RNG.integers(0, 255, (720, 64, 3)).astype(np.uint8)
    moved = still.copy()
    moved[3, 5, 1] ^= 1
    quality, window = Quality(), Window("cam0", "camera", 0, NS, 2.0, np.stack([still, still]), 0)
    assert quality.flags(window) == frozenset()
    assert quality.flags(window) == {"frozen"}
    assert quality.flags(Window("cam0", "camera", 0, NS, 2.0, np.stack([still, moved]), 0)) == frozenset()


def test_a_camera_window_shares_the_memory_of_its_frames_and_reads_as_an_array() -> None:
    cutter = Cutter(NS, NS)
    runs = [RNG.integers(0, 255, (1, 4, 6, 3)).astype(np.uint8) for _ in range(11)]
    stamps = [np.array([k * NS // 10], np.int64) for k in range(11)]
    windows = [
        window
        for run, stamp in zip(runs, stamps, strict=True)
        for window in cutter.push(Samples("cam0", "camera", int(stamp[0]), 10.0, run, stamp))
    ]
    frames = windows[0].data
    assert isinstance(frames, Frames)
    assert np.shares_memory(frames[3], runs[3])
    whole = np.concatenate(runs[:10])
    assert (len(frames), frames.shape) == (10, whole.shape)
    assert np.array_equal(np.asarray(frames), whole)
    assert np.array_equal(frames[:, 1, 2, 0], whole[:, 1, 2, 0])
    assert np.array_equal(frames[np.array([1, 4])], whole[[1, 4]])
    assert np.array_equal(np.asarray(frames[2:5]), whole[2:5])
    assert windows[0].captured_ns == 450_000_000


def test_a_halved_picture_is_near_the_area_resized_one_and_has_a_fingerprint_of_its_own() -> None:
    coarse = RNG.uniform(0, 255, (18, 32, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (1280, 720), interpolation=cv2.INTER_CUBIC)
    noisy = np.clip(smooth + RNG.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
    window = Window("cam0", "camera", 0, NS, 1.0, noisy[None], 0)
    area, halved = CameraPrepare(frames=1, height=96, width=96), HalvedPrepare(frames=1, height=96, width=96)
    one, other = (features.prepare(spec, window).astype(float) for spec in (area, halved))
    linear = cv2.resize(noisy, (96, 96), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)
    off, plain = (float(np.sqrt(np.mean((one - each) ** 2))) for each in (other, linear))
    assert off < min(2.5, 0.5 * plain)
    assert features.fingerprint(area) != features.fingerprint(halved)
    assert features.from_json(features.to_json(halved)) == halved
    assert features.modality(halved) == "camera"
