"""Sound as FLAC: lineside.flac, and recordings that hold it."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mcap.reader import make_reader

from edge import recorder
from edge.config import DeviceConfig, DeviceSettings
from lineside import flac
from lineside.clock import NS, SimulatedClock
from lineside.errors import RecordingError
from lineside.recording import About, Recorder, Recording
from lineside.windows import Samples
from tests.line_device import SENSORS, SITE

START_NS = 1_700_000_000 * NS + 123_456_789


@given(sound=arrays(np.int16, st.integers(1, 9_000)))
@settings(max_examples=25)
def test_any_sound_comes_back_bit_for_bit(sound: np.ndarray) -> None:
    back = flac.decode(flac.encode(sound, 16_000))
    assert back.dtype == np.int16
    np.testing.assert_array_equal(back, sound)


@pytest.mark.parametrize("rate_hz", [8_000, 12_345, 44_100, 51_200, 192_000, flac.MAX_RATE_HZ])
def test_the_rate_is_kept_and_full_scale_too(rate_hz: int) -> None:
    sound = np.tile(np.array([-32_768, 32_767, 0, -1], np.int16), 5_000)
    data = flac.encode(sound, rate_hz)
    with av.open(io.BytesIO(data)) as container:  # a file of its own for any player
        assert container.streams.audio[0].rate == rate_hz
    np.testing.assert_array_equal(flac.decode(data), sound)


def test_what_cannot_be_flac_is_refused_by_name() -> None:
    with pytest.raises(RecordingError, match="too many for FLAC; record it without FLAC"):
        flac.encode(np.zeros(10, np.int16), flac.MAX_RATE_HZ + 1)
    for wild in (b"", b"fLaC", b"no sound at all" * 50):
        with pytest.raises(RecordingError, match=r"is no FLAC|is FLAC that is damaged"):
            flac.decode(wild)
    whole = flac.encode(np.arange(20_000, dtype=np.int16), 16_000)
    for cut in (whole[:-1], whole[: len(whole) // 2], whole[:60], whole[:200] + bytes(8) + whole[208:]):
        with pytest.raises(RecordingError, match=r"is no FLAC|is FLAC that is damaged"):
            flac.decode(cut)


def test_a_recording_with_flac_reads_as_one_with_pcm_and_is_smaller(tmp_path: Path) -> None:
    rng, runs = np.random.default_rng(1), []
    tone = 3_000 * np.sin(2 * np.pi * 220 * np.arange(1_600) / 16_000)
    for k in range(50):
        sound = (tone + rng.normal(0, 200, 1_600)).astype(np.int16)
        flags = frozenset({"gap"} if k == 7 else ())
        runs.append(Samples("mic0", "microphone", START_NS + k * NS // 10, 16_000.0, sound, None, flags))
    for name in ("pcm", "flac"):
        with Recorder(tmp_path / name, About(sensors={"mic0": "microphone"}), sound=name) as recorder:  # type: ignore[arg-type]
            for run in runs:
                recorder.write(run)
    pcm, packed = (list(Recording(tmp_path / name).samples()) for name in ("pcm", "flac"))
    for run, one, other in zip(runs, pcm, packed, strict=True):
        assert (run.start_ns, run.rate_hz, run.flags) == (other.start_ns, other.rate_hz, other.flags)
        assert one.data.tobytes() == other.data.tobytes() == run.data.tobytes()
    assert Recording(tmp_path / "flac").span_ns() == Recording(tmp_path / "pcm").span_ns()
    assert (tmp_path / "flac").stat().st_size < 0.85 * (tmp_path / "pcm").stat().st_size
    with (tmp_path / "flac").open("rb") as file:
        (schema,) = make_reader(file).get_summary().schemas.values()
    assert schema.name == "lineside.FlacAudio"  # no schema of Foxglove's says that it holds FLAC


def test_a_devices_recording_with_flac_holds_the_same_sound(tmp_path: Path) -> None:
    config = DeviceConfig(device=DeviceSettings(id="edge-1", site=SITE, station="press"), sensors=SENSORS)
    for sound in ("pcm", "flac"):
        clock, out = SimulatedClock(START_NS), tmp_path / sound
        recorder.from_sensors(config, tmp_path, out, 2.0, True, clock, threading.Event(), sound)  # type: ignore[arg-type]
    pcm, packed = (list(Recording(tmp_path / name).samples("mic0")) for name in ("pcm", "flac"))
    assert len(pcm) == len(packed) == 20
    assert all(one.data.tobytes() == other.data.tobytes() for one, other in zip(pcm, packed, strict=True))
    made = {block.schema for block in Recording(tmp_path / "flac").blocks()}
    assert made == {"foxglove.CompressedImage", "lineside.FlacAudio"}
