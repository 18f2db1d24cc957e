"""Recordings become what the device would have seen: same windows, same flags, same preparation."""

import numpy as np
import pytest

from lineside import features
from lineside.clock import NS
from lineside.errors import RecordingError
from lineside.recording import Recording
from lineside.windows import moments
from tests import pitch_scene
from trainer.data import default_spec, read
from trainer.plan import RecordingPart, WindowSettings


def part(path, **between):
    return RecordingPart(path=str(path), **between)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """24 s: black pictures from 5 s to 8 s, no sound from 12 s to 14 s, zeros from 17 s to 19 s."""
    path = tmp_path_factory.mktemp("faulty") / "faulty.mcap"
    return pitch_scene.record(path, 24, black=(5, 6, 7), deaf=(12, 13), silent=(17, 18))


def test_prepared_windows_are_those_that_the_device_prepares(faulty):
    data = read([part(faulty)], faulty.parent)
    recording = Recording(faulty)
    seconds = {moment.start_ns: moment for moment in moments(recording.samples(), ("cam0", "mic0"), NS, NS // 2)}
    for sensor, view in data.views.items():
        for row in np.flatnonzero(view.present)[[0, 3, -1]]:
            window = seconds[int(data.start_ns[row])].windows[sensor]
            np.testing.assert_array_equal(view.inputs[row], features.prepare(data.specs[view.modality], window))


def test_flagged_and_missing_windows_are_masked_and_counted(faulty):
    data = read([part(faulty)], faulty.parent)
    second = (data.start_ns - pitch_scene.START_NS) / NS
    camera, sound = data.views["cam0"].present, data.views["mic0"].present
    assert not camera[(second >= 4.5) & (second <= 7)].any()  # whose last frame is black
    assert not sound[second == 12].any()
    assert not sound[second == 17].any()
    assert camera[second == 12].all()
    assert sound[second == 5].all()
    assert data.bad["cam0"]["black"] >= 5
    assert data.bad["mic0"]["silent"] >= 1
    assert data.bad["mic0"]["missing"] >= 1


def test_what_is_labelled_as_a_fault_is_never_learned_from(tmp_path):
    path = pitch_scene.record(tmp_path / "labelled.mcap", 12, labelled=(4, 5))
    data = read([part(path)], tmp_path)
    second = (data.start_ns - pitch_scene.START_NS) / NS
    assert {view.present[(second > 3) & (second < 6)].sum() for view in data.views.values()} == {0}
    assert set(second) >= {0.0, 3.0, 6.0, 10.0}


def test_held_out_moments_are_later_and_share_no_sample_with_the_rest(faulty):
    data = read([part(faulty), part(faulty, from_s=2, to_s=20)], faulty.parent)
    learn, held = data.split(0.25)
    for number in (0, 1):
        mine = data.recording == number
        last = data.start_ns[learn][mine[learn]].max() + data.length_ns
        first = data.start_ns[held][mine[held]].min()
        assert last <= first
    assert 0.15 < len(held) / len(data) < 0.3


def test_a_part_of_a_recording_is_read_alone(faulty):
    whole = read([part(faulty)], faulty.parent)
    some = read([part(faulty, from_s=10, to_s=16)], faulty.parent)
    inside = (whole.start_ns >= some.start_ns[0]) & (whole.start_ns <= some.start_ns[-1])
    assert some.start_ns[0] == pitch_scene.START_NS + 10 * NS
    assert some.start_ns[-1] == pitch_scene.START_NS + 15 * NS
    here = some.views["cam0"].present & whole.views["cam0"].present[inside]
    np.testing.assert_array_equal(some.views["cam0"].inputs[here], whole.views["cam0"].inputs[inside][here])


def test_a_cut_recording_gives_its_readable_part_and_a_warning(faulty, tmp_path):
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(faulty.read_bytes()[: faulty.stat().st_size // 2])
    data = read([part(cut)], tmp_path)
    assert 5 < len(data) < 40
    assert "cut.mcap" in data.warnings[0]
    assert "cut short" in data.warnings[0]


def test_a_recording_without_a_good_window_is_refused_by_name(tmp_path):
    path = pitch_scene.record(tmp_path / "dark.mcap", 3, black=range(3), silent=range(3))
    with pytest.raises(RecordingError, match=r"dark\.mcap: nothing to learn from"):
        read([part(path)], tmp_path)


def test_sound_of_another_rate_than_the_encoder_s_is_refused(faulty):
    known = {"microphone": features.MicrophonePrepare(rate_hz=8_000, samples=8_000, high_hz=4_000.0)}
    with pytest.raises(RecordingError, match="16000"):
        read([part(faulty)], faulty.parent, WindowSettings(), known)


@pytest.mark.parametrize(("rate", "frames"), [(8_000, 59), (16_000, 59), (44_100, 83), (48_000, 90)])
def test_sound_of_any_rate_gets_frames_of_32_to_64_ms(rate, frames):
    window = pitch_scene.Samples("m", "microphone", 0, float(rate), np.zeros(rate, np.int16))
    (moment,) = moments(iter([window]), ("m",), NS, NS)
    spec = default_spec(moment.windows["m"])
    assert features.shape(spec) == (1, 64, frames)
    assert features.prepare(spec, moment.windows["m"]).shape == (1, 64, frames)
