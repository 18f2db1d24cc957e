"""Feature files: what goes in comes out, what is damaged is refused by name, and training reads them as recordings."""

import dataclasses
import doctest
import hashlib
import itertools
import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from lineside import features, release
from lineside.clock import NS
from lineside.errors import ConfigError, RecordingError, ReleaseError
from lineside.features import CameraPrepare, FeaturesPrepare
from lineside.recording import About, Label, Recorder
from lineside.windows import Samples, Window
from tests import tiny_encoder
from trainer import data as data_room
from trainer import feature_files
from trainer.data import Dataset, View, named, read
from trainer.feature_files import FeatureFile, SensorFeatures
from trainer.plan import RecordingPart, WindowSettings

START_NS = 1_700_000_000 * NS
EYE, EAR, OTHER = "a1" * 32, "b2" * 32, "c3" * 32
FROZEN = FeaturesPrepare(width=6, backbone=EYE)


def made(count=8, seed=0, **changes) -> FeatureFile:
    """Two cameras and a microphone, a window of 1 s every 0.5 s; row 2 of cam1 is not present."""
    rng = np.random.default_rng(seed)
    present = np.ones(count, np.bool_)
    sensors = {
        "cam0": SensorFeatures("camera", rng.normal(size=(count, 6)).astype(np.float32), present),
        "cam1": SensorFeatures("camera", rng.normal(size=(count, 6)).astype(np.float32), np.arange(count) != 2),
        "mic0": SensorFeatures("microphone", rng.normal(size=(count, 3)).astype(np.float16), present),
    }
    file = FeatureFile(
        sensors=sensors,
        backbones={"camera": EYE, "microphone": EAR},
        start_ns=START_NS + np.arange(count) * (NS // 2),
        length_ns=NS,
        hop_ns=NS // 2,
        labels=np.array([f"part {row // 4}" if row % 2 else "" for row in range(count)], np.str_),
    )
    return dataclasses.replace(file, **changes)


def with_sensor(file: FeatureFile, sensor: str, **changes) -> FeatureFile:
    changed = dataclasses.replace(file.sensors[sensor], **changes)
    return dataclasses.replace(file, sensors={**file.sensors, sensor: changed})


def put(folder, name="a.safetensors", **changes):
    """Write a feature file; gives the plan's word for it."""
    feature_files.write(folder / name, made(**changes))
    return RecordingPart(name)


def spoil(path, tensors=None, metadata=None, *, without=(), about=None):
    """Write a whole safetensors file that says something else than `write` would."""
    data = path.read_bytes()
    said = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    if about:
        said = {"about": json.dumps({**json.loads(said["about"]), **about})}
    kept = {name: tensor for name, tensor in load(data).items() if name not in without}
    path.write_bytes(save({**kept, **(tensors or {})}, said if metadata is None else metadata))


def series(path, seconds=6, labels=(), first_s=0, sensors=("pump0",)):
    """Record a small series of each sensor, 20 values a second."""
    rng = np.random.default_rng(3)
    about = About(sensors=dict.fromkeys(sensors, "series"), length_s=1.0, hop_s=0.5)
    with Recorder(path, about) as recorder:
        for label in labels:
            recorder.label(label)
        for second, sensor in itertools.product(range(seconds), sensors):
            values = rng.normal(size=(20, 2)).astype(np.float32)
            recorder.write(Samples(sensor, "series", START_NS + (first_s + second) * NS, 20.0, values))
    return RecordingPart(path.name)


def label(start_s, end_s, name, **fields):
    return Label(START_NS + round(start_s * NS), START_NS + round(end_s * NS), name, **fields)


# The file itself


def test_what_goes_in_comes_out(tmp_path):
    feature_files.write(tmp_path / "a.safetensors", made())
    found = feature_files.read(tmp_path / "a.safetensors")
    wanted = made()
    for name, sensor in wanted.sensors.items():
        assert found.sensors[name].modality == sensor.modality
        assert found.sensors[name].features.dtype == sensor.features.dtype
        np.testing.assert_array_equal(found.sensors[name].features, sensor.features)
        np.testing.assert_array_equal(found.sensors[name].present, sensor.present)
    assert found.sensors.keys() == wanted.sensors.keys()
    np.testing.assert_array_equal(found.start_ns, wanted.start_ns)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    assert (found.backbones, found.length_ns, found.hop_ns) == (wanted.backbones, NS, NS // 2)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_only_some_modalities_are_read(tmp_path):
    feature_files.write(tmp_path / "a.safetensors", made())
    spoil(tmp_path / "a.safetensors", without=("mic0/features",))
    assert set(feature_files.read(tmp_path / "a.safetensors", only={"camera"}).sensors) == {"cam0", "cam1"}


def test_a_file_without_labels_has_an_empty_one_a_moment(tmp_path):
    feature_files.write(tmp_path / "a.safetensors", made(labels=np.zeros(0, np.str_)))
    assert feature_files.read(tmp_path / "a.safetensors").labels.tolist() == [""] * 8


def test_presence_may_be_bytes_and_absent_rows_may_be_anything(tmp_path):
    path = tmp_path / "a.safetensors"
    feature_files.write(path, made())
    values = made().sensors["cam1"].features.copy()
    values[2] = np.nan  # the row that is not present
    spoil(path, {"cam1/features": values, "cam1/present": (np.arange(8) != 2).astype(np.uint8)})
    found = feature_files.read(path).sensors["cam1"]
    assert found.present.dtype == np.bool_
    assert found.present.tolist() == [row != 2 for row in range(8)]


SPOILED = {
    "no description": ({"metadata": {}}, "does not say what it holds"),
    "damaged description": ({"metadata": {"about": "{"}}, "damaged description"),
    "half a description": ({"metadata": {"about": '{"modalities": {"cam0": "camera"}}'}}, "missing required field"),
    "no sensors": ({"about": {"modalities": {}}}, "names no sensors"),
    "a sensor without features": ({"without": ("cam1/features",)}, "no tensor `cam1/features`"),
    "a sensor without presence": ({"without": ("mic0/present",)}, "no tensor `mic0/present`"),
    "no times": ({"without": ("start_ns",)}, "no tensor `start_ns`"),
    "features of one axis": ({"tensors": {"cam0/features": np.ones(8, "f4")}}, r"`cam0/features` has shape \(8,\)"),
    "no width": ({"tensors": {"cam0/features": np.ones((8, 0), "f4")}}, r"`cam0/features` has shape \(8, 0\)"),
    "features too few": ({"tensors": {"mic0/features": np.ones((7, 3), "f4")}}, r"`mic0/features` .*\(8, f\)"),
    "presence too short": ({"tensors": {"cam1/present": np.ones(7, "?")}}, r"`cam1/present` has shape \(7,\)"),
    "double features": ({"tensors": {"cam0/features": np.ones((8, 6))}}, "`cam0/features` is F64"),
    "presence of floats": ({"tensors": {"cam0/present": np.ones(8, "f4")}}, "`cam0/present` is F32"),
    "times of floats": ({"tensors": {"start_ns": np.ones(8)}}, "`start_ns` is F64"),
    "times of two axes": ({"tensors": {"start_ns": np.ones((8, 1), "i8")}}, r"`start_ns` has shape \(8, 1\)"),
    "no moments": ({"tensors": {"start_ns": np.ones(0, "i8")}, "about": {"labels": []}}, "at least one moment"),
    "times that stand": ({"tensors": {"start_ns": np.full(8, 5)}}, "not in the order of time"),
    "times that go back": ({"tensors": {"start_ns": np.arange(8)[::-1].copy()}}, "not in the order of time"),
    "too few labels": ({"about": {"labels": ["x"]}}, "1 labels for 8 moments"),
    "no labels": ({"about": {"labels": []}}, "0 labels for 8 moments"),
    "labels of numbers": ({"about": {"labels": [1] * 8}}, "damaged description"),
    "two widths": ({"tensors": {"cam1/features": np.ones((8, 5), "f4")}}, "cam1 has 5 features, another camera has 6"),
    "no backbone": ({"about": {"backbones": {"camera": EYE}}}, "names no backbone of microphone"),
    "no such hash": (
        {"about": {"backbones": {"camera": "resnet", "microphone": EAR}}},
        "no backbone of camera.*resnet",
    ),
    "no hop": ({"about": {"hop_ns": 0}}, "every 0 ns"),
    "a hop above the length": ({"about": {"hop_ns": 2 * NS}}, "follow within their length"),
    "a modality of two words": (
        {"about": {"modalities": {"cam0": "far.camera"}, "backbones": {"far.camera": EYE}}},
        "no single word",
    ),
}


@pytest.mark.parametrize(("how", "told"), SPOILED.values(), ids=SPOILED)
def test_a_file_that_says_something_else_is_refused_by_name(tmp_path, how, told):
    path = tmp_path / "a.safetensors"
    feature_files.write(path, made())
    spoil(path, **how)
    with pytest.raises(RecordingError, match=told) as refused:
        feature_files.read(path)
    assert refused.value.thing == str(path)
    assert refused.value.mend


@pytest.mark.parametrize("cut", [0, 4, 60, -1], ids=["empty", "no header", "half a header", "one byte short"])
def test_a_damaged_file_is_refused(tmp_path, cut):
    path = tmp_path / "a.safetensors"
    feature_files.write(path, made())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(RecordingError, match=r"a\.safetensors: is damaged"):
        feature_files.read(path)


def test_bytes_that_are_no_file_of_ours_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"\x80\x04K\x01." * 20)  # somebody's pickle
    with pytest.raises(RecordingError, match="is damaged or no safetensors file"):
        feature_files.read(path)
    with pytest.raises(RecordingError, match=r"cannot be read.*check the path"):
        feature_files.read(tmp_path / "gone.safetensors")
    with pytest.raises(RecordingError, match="cannot be read"):
        feature_files.read(tmp_path)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_numbers_are_refused_with_sensor_and_first_row(tmp_path, kind, value):
    path = tmp_path / "a.safetensors"
    feature_files.write(path, made())
    values = np.ones((8, 6), kind)
    values[2:6:3, 4] = value  # row 2, which is not present, and row 5
    spoil(path, {"cam1/features": values})
    with pytest.raises(RecordingError, match=r"features of cam1 are not finite, first in row 5 \(2\.5 s"):
        feature_files.read(path)


def test_what_could_not_be_read_is_not_written(tmp_path):
    path = tmp_path / "a.safetensors"
    too_large = np.ones((8, 6))
    too_large[3] = 1e300  # as float32 it is infinite
    wrong = {
        "names no sensors": made(sensors={}),
        "row 3": with_sensor(made(), "cam0", features=too_large),
        "8 labels for 9": made(9, labels=made(8).labels),
        "order of time": made(start_ns=made().start_ns[::-1]),
        "shape": with_sensor(made(), "mic0", present=np.ones(3, np.bool_)),
    }
    for told, file in wrong.items():
        with pytest.raises(RecordingError, match=told):
            feature_files.write(path, file)
        assert not path.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordingError, match="cannot be written"):
        feature_files.write(tmp_path / "file" / "a.safetensors", made())


# Files in a plan


def test_a_plan_s_feature_files_become_one_dataset(tmp_path):
    data = read([put(tmp_path), put(tmp_path, "b.safetensors", seed=1, start_ns=made().start_ns + 9 * NS)], tmp_path)
    one, two = made(), made(seed=1)
    assert len(data) == 16
    assert data.recording.tolist() == [0] * 8 + [1] * 8
    np.testing.assert_array_equal(data.start_ns[8:], one.start_ns + 9 * NS)
    assert data.specs == {"camera": FROZEN, "microphone": FeaturesPrepare(width=3, backbone=EAR)}
    assert data.modalities == {"cam0": "camera", "cam1": "camera", "mic0": "microphone"}
    assert (data.length_ns, data.hop_ns, data.warnings) == (NS, NS // 2, [])
    for name, view in data.views.items():
        assert view.inputs.dtype == np.float32
        assert view.present.tolist() == [name != "cam1" or row % 8 != 2 for row in range(16)]
        wanted = np.concatenate([one.sensors[name].features, two.sensors[name].features])
        np.testing.assert_array_equal(view.inputs[view.present], wanted[view.present])
    assert data.bad == {"cam0": {}, "cam1": {"missing": 2}, "mic0": {}}
    assert data.labels.tolist() == one.labels.tolist() * 2


@given(st.integers(0, 25), st.integers(0, 25), st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**30))
def test_a_part_of_a_feature_file_holds_the_whole_windows_between_its_times(from_, to, count, length, seed):
    """Against a slow oracle, in half seconds; gaps between moments are allowed."""
    starts = np.cumsum(np.random.default_rng(seed).integers(1, 4, count))
    file = made(count, start_ns=START_NS + starts * (NS // 2), length_ns=length * NS // 2, labels=np.zeros(0, np.str_))
    wanted = [
        row
        for row, start in enumerate(starts)
        if start - starts[0] >= from_ and (not to or start - starts[0] + length <= to)
    ]
    assert file.rows(from_ / 2, to / 2).tolist() == wanted


def test_a_part_is_the_same_of_a_feature_file_as_of_its_recording(tmp_path):
    recorded = series(tmp_path / "a.mcap", 12)
    whole = read([recorded], tmp_path)
    values = whole.views["pump0"].inputs[:, 0, :6].astype(np.float32)
    sensors = {"pump0": SensorFeatures("series", values, np.ones(len(whole), np.bool_))}
    labels = np.array([str(row) for row in range(len(whole))], np.str_)
    file = made(sensors=sensors, backbones={"series": EYE}, start_ns=whole.start_ns, labels=labels)
    feature_files.write(tmp_path / "a.safetensors", file)
    for times in ({"from_s": 2.5}, {"to_s": 6.0}, {"from_s": 2.0, "to_s": 6.5}):
        wanted = read([msgspec.structs.replace(recorded, **times)], tmp_path)
        found = read([RecordingPart("a.safetensors", **times)], tmp_path)
        np.testing.assert_array_equal(found.start_ns, wanted.start_ns)
        rows = np.searchsorted(whole.start_ns, found.start_ns)
        np.testing.assert_array_equal(found.views["pump0"].inputs, values[rows])
        assert found.labels.tolist() == [str(row) for row in rows]


def test_parts_that_hold_nothing_are_refused(tmp_path):
    put(tmp_path)
    with pytest.raises(RecordingError, match=r"a\.safetensors: nothing to learn from"):
        read([RecordingPart("a.safetensors", from_s=100)], tmp_path)


def test_two_backbones_in_one_plan_are_refused_naming_both(tmp_path):
    parts = [put(tmp_path), put(tmp_path, "b.safetensors", backbones={"camera": OTHER, "microphone": EAR})]
    with pytest.raises(ConfigError, match=f"b.safetensors: .*camera .*{OTHER[:12]}, but {EYE[:12]} .*one backbone"):
        read(parts, tmp_path)
    assert len(read(parts, tmp_path, only={"microphone"})) == 16


def test_another_backbone_than_the_parent_s_is_refused_naming_both(tmp_path):
    part = put(tmp_path)
    assert read([part], tmp_path, specs={"camera": FROZEN}).specs["camera"] == FROZEN
    for spec, told in {
        FeaturesPrepare(6, OTHER): f"camera .*{EYE[:12]}, but {OTHER[:12]} .*the parent",
        FeaturesPrepare(7, EYE): "6 camera features, but 7",
        CameraPrepare(): f"backbone {EYE[:12]}, but camera/1 .*recording itself",
    }.items():
        with pytest.raises(ConfigError, match=told):
            read([part], tmp_path, specs={"camera": spec})


def test_raw_and_frozen_windows_of_one_modality_are_refused_before_anything_is_read(tmp_path):
    raw = series(tmp_path / "raw.mcap")
    values = np.ones((8, 6), np.float32)
    frozen = put(
        tmp_path,
        sensors={"pump1": SensorFeatures("series", values, np.ones(8, np.bool_))},
        backbones={"series": EYE},
    )
    seen = []
    for parts in ([raw, frozen], [frozen, raw]):
        with pytest.raises(ConfigError, match=f"raw.mcap: holds raw windows of pump0.*feature file .*{EYE[:12]}"):
            read(parts, tmp_path, progress=lambda what, count: seen.append(count))
    with pytest.raises(ConfigError, match="raw windows of pump0"):
        read([raw], tmp_path, specs={"series": FeaturesPrepare(6, EYE)})
    assert not seen


def test_recordings_and_feature_files_of_different_modalities_go_together(tmp_path):
    data = read([put(tmp_path), series(tmp_path / "raw.mcap", first_s=60)], tmp_path)
    assert set(data.specs) == {"camera", "microphone", "series"}
    assert data.views["pump0"].present.tolist() == [False] * 8 + [True] * 11
    assert data.views["cam0"].present.tolist() == [True] * 8 + [False] * 11
    assert data.labels.tolist() == [*made().labels, *[""] * 11]


def test_a_sensor_of_two_modalities_is_refused(tmp_path):
    with pytest.raises(RecordingError, match="calls cam0 a series, an earlier recording a camera"):
        read([put(tmp_path), series(tmp_path / "raw.mcap", sensors=("cam0",))], tmp_path)


def test_windows_of_another_length_or_hop_are_refused(tmp_path):
    part = put(tmp_path)
    with pytest.raises(ConfigError, match=r"1 s every 0\.5 s; .* 2 s every 0\.5 s; .*\[windows\]"):
        read([part], tmp_path, WindowSettings(length_s=2.0))
    with pytest.raises(ConfigError, match=r"b\.safetensors: has windows of 1 s every 0\.25 s"):
        read([part, put(tmp_path, "b.safetensors", hop_ns=NS // 4)], tmp_path)
    assert len(read([part], tmp_path, WindowSettings(length_s=1.0, hop_s=0.5))) == 8


# Labels and values of a dataset


def test_moments_are_labelled_by_what_covers_their_middle(tmp_path):
    labels = [
        label(1.0, 3.0, "part A"),
        label(2.2, 2.8, "warm-up"),  # began later: says more
        label(2.6, 4.2, "burst", sensor="pump0"),  # of a sensor: says less than one of the station
        label(5.0, 5.0, "nothing"),
        label(7.0, 8.0, "leak", fault=True),
    ]
    data = read([series(tmp_path / "a.mcap", 9, labels)], tmp_path)
    found = dict(zip(((data.start_ns - START_NS) / NS).tolist(), data.labels.tolist(), strict=True))
    assert found == {
        0.0: "",
        0.5: "part A",  # its middle is 1.0, where the label begins
        1.0: "part A",
        1.5: "part A",
        2.0: "warm-up",
        2.5: "burst",  # its middle is 3.0, where "part A" has ended
        3.0: "burst",
        3.5: "burst",
        4.0: "",
        4.5: "",
        5.0: "",
        5.5: "",
        6.0: "",
        6.5: "",  # a fault is no label of what is normal; half of this window is left
        7.5: "",
        8.0: "",
    }


def test_labels_follow_their_own_recording(tmp_path):
    parts = [
        series(tmp_path / "a.mcap", 3, [label(0, 9, "one")]),
        series(tmp_path / "b.mcap", 3, [label(0, 9, "another, longer")]),
        series(tmp_path / "c.mcap", 3),
    ]
    data = read(parts, tmp_path)
    assert data.labels.tolist() == ["one"] * 5 + ["another, longer"] * 5 + [""] * 5


def test_a_sensor_s_label_does_not_hide_the_station_s():
    both = [label(0, 2, "part A"), label(1, 3, "burst", sensor="mic0")]
    middles = START_NS + np.array([0, 1, 2, 3]) * NS
    assert named(both, middles) == named(both[::-1], middles) == ["part A", "part A", "burst", ""]
    later = [*both, label(1, 2, "warm-up")]
    assert named(later, middles) == named(later[::-1], middles) == ["part A", "warm-up", "burst", ""]


def test_labels_change_the_hash_and_their_absence_leaves_it_as_it_was(tmp_path):
    """Finished and half-trained stages are known by it."""
    data = read([series(tmp_path / "a.mcap")], tmp_path)
    view = data.views["pump0"]
    old = hashlib.sha256(data.start_ns.tobytes())
    old.update(b"pump0" + view.present.tobytes() + view.inputs.tobytes())
    assert data.sha256 == old.hexdigest()
    bare = {name: getattr(data, name) for name in data.__dataclass_fields__ if name != "labels"}
    assert len(Dataset(**bare).labels) == 0
    assert Dataset(**bare).sha256 == old.hexdigest()
    empty = [""] * (len(data) - 2)
    hashes = {
        dataclasses.replace(data, labels=np.array(labels, np.str_)).sha256
        for labels in ([""] * len(data), ["a", "b", *empty], ["b", "a", *empty], ["ab", "", *empty])
    }
    assert len(hashes) == 4


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_window_that_is_not_finite_is_refused_by_sensor_and_moment(value):
    inputs = np.zeros((6, 2, 3), np.float32)
    inputs[1, 1, 1] = inputs[4, 0, 2] = value
    views = {
        "cam0": View("camera", np.zeros((6, 3, 4, 4), np.uint8), np.ones(6, np.bool_)),
        "pump0": View("series", inputs, np.arange(6) != 1),
    }
    start_ns = START_NS + np.array([0, 1, 2, 7, 8, 9]) * NS
    data = Dataset(views, {}, start_ns, np.array([0, 0, 0, 1, 1, 1]), NS, NS, {}, [])
    with pytest.raises(RecordingError, match=rf"^pump0: .* {start_ns[4]} ns \(1 s into recording 2 of the plan\)"):
        data.check_finite()
    inputs[4] = 0
    data.check_finite()  # row 1 is not present


def test_reading_looks_for_windows_that_are_not_finite(tmp_path, monkeypatch):
    """No preparation makes them of windows without a flag; should one ever do, no training may begin."""
    whole = features.prepare
    monkeypatch.setattr(features, "prepare", lambda spec, window: whole(spec, window) * np.float32(np.nan))
    with pytest.raises(RecordingError, match=r"pump0: its window at .* not finite"):
        read([series(tmp_path / "a.mcap")], tmp_path)


# The preparation


def test_features_are_vectors_of_float32_that_json_carries():
    assert features.shape(FROZEN) == (6,)
    assert features.dtype(FROZEN) == np.float32
    assert (features.kind(FROZEN), features.modality(FROZEN)) == ("features/1", "features")
    assert features.to_json(FROZEN) == f'{{"backbone":"{EYE}","type":"features/1","width":6}}'
    assert msgspec.json.decode(features.to_json(FROZEN), type=features.Prepare) == FROZEN
    others = [FROZEN, FeaturesPrepare(7, EYE), FeaturesPrepare(6, OTHER)]
    assert len({features.fingerprint(spec) for spec in others}) == 3


def test_nothing_that_runs_on_a_device_is_made_of_features():
    window = Window("cam0", "features", 0, NS, 4.0, np.zeros((4, 8, 8, 3), np.uint8), 0)
    with pytest.raises(ValueError, match=r"cam0: .*features/1: its frozen backbone has to run first"):
        features.prepare(FROZEN, window)
    with pytest.raises(ReleaseError, match="backbone has to run first") as refused:
        features.golden_windows(FROZEN)
    assert refused.value.check == "prepare"


@pytest.mark.parametrize("modality", ["camera", "features"])
def test_a_release_made_of_features_is_refused_by_the_name_of_the_check(modality):
    spec = {"prepare": features.to_json(FROZEN), "prepare_sha256": features.fingerprint(FROZEN)}
    card = msgspec.structs.replace(tiny_encoder.card("camera"), modality=modality, **spec)
    with pytest.raises(ReleaseError, match="backbone has to run first") as refused:
        release.accept(card, {})
    assert refused.value.check == "prepare"


def test_the_examples_in_the_docstrings_run():
    for module in (feature_files, data_room, features):
        told = doctest.testmod(module)
        assert told.attempted > 0
        assert told.failed == 0
