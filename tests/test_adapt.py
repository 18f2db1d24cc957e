"""Registry and fusion: what may enter, what is refused by name, what is chosen, and the commands from end to end."""

import copy
import json
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load as parse
from safetensors.torch import save as pack
from typer.testing import CliRunner

from lineside import config
from lineside.clock import NS
from lineside.errors import ConfigError, GateError, RecordingError
from lineside.files import sha256
from tests import labelled_scene
from tests.labelled_scene import adapt_plan, register_plan
from trainer import adapt, classifier, feature_files, fused, registry, ways
from trainer.__main__ import app
from trainer.adapt_plan import AdaptPlan, LoraSettings, RegisterPlan, UmtSettings
from trainer.feature_files import FeatureFile, SensorFeatures
from trainer.joint import Models
from trainer.labelled import by_time
from trainer.ume import mean_of_logits

pytestmark = pytest.mark.slow

LORA_ONLY, NOTHING_TRAINED = UmtSettings(epochs=0), {"umt": UmtSettings(epochs=0), "lora": LoraSettings(ranks=[])}


@pytest.fixture(scope="module")
def data():
    return labelled_scene.labelled(missing=0.1)


@pytest.fixture(scope="module")
def known(data):
    return {kind: registry.make(data, kind, register_plan()) for kind in sorted(labelled_scene.SPECS)}


@pytest.fixture
def folder(tmp_path, known):
    registry.save(tmp_path / "registry", known)
    return tmp_path / "registry"


@pytest.fixture(scope="module")
def done(known, data):
    return adapt.adapt(known, data, adapt_plan())


# The registry


def test_an_entry_says_how_good_its_model_is_on_windows_that_it_never_saw(known, data):
    for kind, each in known.items():
        metric, entry = each.entry.metric, each.entry
        windows, rows = data.windows(kind, "test")
        right = classifier.outputs(each.model, windows).argmax(1).numpy() == data.state[rows]
        assert metric.accuracy == pytest.approx(right.mean())
        assert metric.windows == len(rows)
        assert 0 <= metric.accuracy_interval[0] <= metric.accuracy <= metric.accuracy_interval[1] <= 1
        assert 0 <= metric.macro_f1_interval[0] <= metric.macro_f1 <= metric.macro_f1_interval[1] <= 1
        assert metric.accuracy > 0.4  # chance is a third
        assert entry.sha256 == sha256(classifier.to_bytes(each.model))
        assert 0 < entry.temperature < 100


def test_the_temperature_is_the_one_of_the_best_log_score_on_val(known, data):
    each = known["gauge"]
    windows, rows = data.windows("gauge", "val")
    logits = classifier.outputs(each.model, windows)
    at = [classifier.score(logits / t, data.state[rows])[1] for t in np.array([0.7, 1, 1.4]) * each.entry.temperature]
    assert at[1] >= max(at) - 5e-3


def test_a_registry_is_read_back_as_it_was_and_grows_by_entries(folder, known):
    found = registry.load(folder, known)
    x = torch.from_numpy(np.stack([labelled_scene.window("series", 1, np.random.default_rng(0))] * 2))
    assert torch.equal(found["series"].model(x), known["series"].model(x))
    assert {kind: each.entry for kind, each in found.items()} == {k: each.entry for k, each in known.items()}
    assert not any(weight.requires_grad for weight in found["camera"].model.parameters())
    registry.save(folder, {"series": known["series"]})
    assert registry.read(folder).entries.keys() == known.keys()


def change_entry(folder, kind, **changes):
    table = registry.read(folder)
    entry = msgspec.structs.replace(table.entries[kind], **changes)
    text = msgspec.json.encode(registry.Table({**table.entries, kind: entry}))
    (folder / registry.TABLE).write_bytes(text)


def another_file(folder, known):
    path = folder / known["camera"].entry.file
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def another_key(folder, known):
    """The hash is right, the weights are of something else."""
    stored = parse(classifier.to_bytes(known["camera"].model))
    data = pack({name.replace("head", "tail"): tensor for name, tensor in stored.items()})
    (folder / "camera-odd.safetensors").write_bytes(data)
    change_entry(folder, "camera", file="camera-odd.safetensors", sha256=sha256(data))


REFUSED = {
    "no entry": (lambda folder, known: None, ("camera", "lidar"), "lidar in .*: has no entry, and no modality enters"),
    "no metric": (lambda f, k: change_entry(f, "camera", metric=None), ("camera",), "camera in .*: has no metric"),
    "another hash": (another_file, ("camera",), r"camera-\w+\.safetensors: is another file than its entry says"),
    "no file": (lambda f, k: (f / k["camera"].entry.file).unlink(), ("camera",), "cannot be read"),
    "another key": (another_key, ("camera",), "camera in .*: does not fit the model it is said to be of"),
    "preparation": (
        lambda f, k: change_entry(f, "camera", prepare_sha256="00"),
        ("camera",),
        "camera in .*: has a preparation that is not the one",
    ),
    "temperature": (lambda f, k: change_entry(f, "camera", temperature=0.0), ("camera",), "has the temperature 0.0"),
    "other states": (
        lambda f, k: change_entry(f, "camera", names=["a", "b", "c"]),
        ("camera", "series"),
        "tell different states apart .camera tells a, b, c; series tells idle, jam, running",
    ),
    "no table": (lambda f, k: (f / registry.TABLE).unlink(), ("camera",), "is no registry"),
    "half a table": (lambda f, k: (f / registry.TABLE).write_text("{"), ("camera",), "cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_not_enter_fusion_is_refused_by_name(folder, known, name):
    made, asked, told = REFUSED[name]
    made(folder, known)
    with pytest.raises(ConfigError, match=told) as refused:
        registry.load(folder, asked)
    assert refused.value.mend


# Ways to fuse


def test_every_way_is_in_the_table_and_the_result_can_be_read(done, known):
    told = [row.way for row in done.result.table]
    cells = [f"MMLoRA rank 2, {where}" for where in ("camera", "gauge", "series", "all")]
    assert [row for row in told if not row.startswith(("registered", done.result.chosen + ":"))] == [
        "UME, mean of probabilities",
        "UME, mean of logits",
        "UME, fitted weights",
        "UMT",
        *cells,
    ]
    assert sum(row.startswith("registered: ") for row in told) == 6  # three alone, three pairs
    again = msgspec.json.decode(msgspec.json.encode(done.result), type=type(done.result))
    assert again == done.result
    assert done.result.frozen == {kind: each.entry.sha256 for kind, each in known.items()}
    assert all(row.low <= row.accuracy <= row.high for row in done.result.table)


def test_sensors_together_know_what_none_knows_alone(done):
    rows = {row.way: row for row in done.result.table}
    assert done.result.best_single in labelled_scene.KINDS
    assert rows[done.result.chosen].accuracy > rows[f"registered: {done.result.best_single}"].accuracy + 0.05
    assert done.result.gain_interval[0] > 0
    assert {gate.name for gate in done.result.gates} == {
        "retention cam0",
        "retention pump0",
        "retention aux0",
        f"fusion gain over {done.result.best_single}",
    }
    assert sum(told["share"] for told in done.result.contributions.values()) == pytest.approx(1)


@pytest.mark.slow
def test_umt_draws_features_to_those_of_its_teachers(known, data):
    def distance(strength):
        plan = adapt_plan(umt=UmtSettings(epochs=8, strength=strength), lora=LoraSettings(ranks=[]))
        (umt,) = [way for way in ways.all_ways(known, data, plan) if way.name == ways.UMT]
        student, teacher = umt.models.models["camera"], known["camera"].model
        windows = data.windows("camera", "test")[0]
        a, b = (classifier.outputs(model, windows, model.trunk) for model in (student, teacher))
        assert set(umt.bases) == set(known)
        return float((a - b).square().mean())

    assert distance(100.0) < 0.7 * distance(0.0)


def way_of(name, right, trained=0):
    """A way that is right where it is told so: one sensor, two classes."""

    class Told(Models):
        def say(self, data, part, only=None):
            state = torch.from_numpy(data.state[data.rows[part]])
            z = torch.nn.functional.one_hot(torch.where(torch.from_numpy(right), state, 1 - state), 2).float()
            from trainer.joint import Said

            return Said(("a",), z[None], torch.ones(1, len(state), dtype=torch.bool))

    return ways.Way(name, Told({}, {}), {"a": 1.0}, trained=trained)


def test_a_trained_way_is_taken_only_beyond_noise_and_only_if_it_keeps_what_sensors_know():
    """200 moments in 20 groups."""
    scene = labelled_scene.labelled(count=800)
    rows = {part: each[:200] for part, each in scene.rows.items()}
    some = scene.__class__(scene.dataset, ("p", "q"), scene.state % 2, rows, np.arange(800) // 10)
    noisy = np.arange(200) % 5 > 0
    ume, fitted = way_of(ways.UME, noisy), way_of(ways.WEIGHTED, noisy)
    lucky, better = noisy.copy(), np.arange(200) % 50 > 0
    lucky[:2] = True
    plan = adapt_plan()
    way, why = ways.choose([ume, fitted, way_of("lora", lucky, 5)], some, plan)
    assert (way, "within noise" in why) == (ume, True)
    way, why = ways.choose([ume, fitted, way_of("lora", better, 5)], some, plan)
    assert (way.name, "beyond noise" in why) == ("lora", True)
    assert ways.choose([ume, way_of(ways.WEIGHTED, better)], some, plan)[0].name == ways.WEIGHTED
    assert ways.choose([ume, fitted], some, plan)[0] is ume


def test_a_base_that_has_moved_is_told_and_nothing_is_written(known, data):
    moved = {**known, "series": copy.deepcopy(known["series"])}
    moved["series"].model.trunk.body[1].running_mean += 1e-3
    with pytest.raises(GateError, match="series: has moved: its weights and buffers hash to"):
        adapt.adapt(moved, data, adapt_plan(**NOTHING_TRAINED))


def test_fusion_wants_two_sensors_of_registered_modalities_and_the_same_states(known, data):
    plan = adapt_plan(**NOTHING_TRAINED)
    with pytest.raises(ConfigError, match=r"pump0: \(series\) has no registered model, and no modality enters"):
        adapt.adapt({k: known[k] for k in ("camera", "gauge")}, data, plan)
    with pytest.raises(ConfigError, match="gives cam0, and fusion needs two sensors"):
        adapt.adapt(known, labelled_scene.labelled(sensors=("cam0",)), plan)
    other = copy.copy(data)
    object.__setattr__(other, "names", ("idle", "jam", "walking"))
    with pytest.raises(ConfigError, match="is registered for idle, jam, running; the labels are idle, jam, walking"):
        adapt.adapt(known, other, plan)


def test_without_peft_the_error_names_the_extra_and_the_rest_still_works(known, data, monkeypatch):
    from trainer import adapters

    assert adapters.__name__ == "trainer.adapters"
    monkeypatch.delattr(sys.modules["trainer"], "adapters")
    monkeypatch.delitem(sys.modules, "trainer.adapters")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match="low-rank adapters need the peft library") as refused:
        adapt.adapt(known, data, adapt_plan(umt=LORA_ONLY))
    assert "lineside[adapt]" in refused.value.mend
    assert adapt.adapt(known, data, adapt_plan(**NOTHING_TRAINED)).way.trained == 0


# The fused folder


@pytest.fixture
def written(tmp_path, known, data):
    """A fused model of MMLoRA, whatever would have been chosen."""
    plan = adapt_plan(umt=LORA_ONLY)
    made = ways.all_ways(known, data, plan)
    chosen = made[-1]
    assert chosen.name == "MMLoRA rank 2, all"
    from trainer.fusion_table import measured

    result = measured(made, chosen, "for a test", data, plan.gates, {})
    about, files = adapt.description(adapt.Adapted(result, chosen), known, data, plan)
    fused.save(tmp_path / "fused", about, files)
    return tmp_path / "fused", chosen


def test_a_fused_folder_gives_the_model_back_and_rolls_one_modality_back_alone(written, known, data):
    folder, chosen = written
    said = chosen.models.say(data, "test")
    whole, back = fused.load(folder), fused.load(folder, without=["camera"])
    assert torch.equal(whole.models.say(data, "test").z, said.z)
    own = ways.registered(known).say(data, "test")
    rolled = back.models.say(data, "test")
    assert torch.equal(rolled.z[0], own.z[0])
    assert torch.equal(rolled.z[1:], said.z[1:])
    assert torch.equal(whole.logits(said), mean_of_logits(said.z, said.present, torch.full((3,), 1 / 3)))
    names = {path.name for path in folder.iterdir()}
    assert {f"{kind}-adapter-1.safetensors" for kind in known} < names
    assert {each.entry.file for each in known.values()} < names
    with pytest.raises(ConfigError, match="has no lidar to roll back"):
        fused.load(folder, without=["lidar"])


def edited(folder, **changes):
    about = fused.read(folder)
    camera = msgspec.structs.replace(about.members["camera"], **changes)
    about = msgspec.structs.replace(about, members={**about.members, "camera": camera})
    (folder / fused.DESCRIPTION).write_bytes(msgspec.json.encode(about))


def test_two_adapters_another_hash_and_another_base_are_refused_by_name(written, known):
    folder, _ = written
    member = fused.read(folder).members["camera"]
    other = fused.read(folder).members["series"]
    edited(folder, adapters=member.adapters * 2)
    with pytest.raises(ConfigError, match=r"camera in .* names 2 adapters .*: two adapters are not stacked"):
        fused.load(folder)
    edited(folder, adapters=other.adapters)
    with pytest.raises(ConfigError, match="is an adapter of series, not of camera"):
        fused.load(folder)
    edited(folder, adapters=[msgspec.structs.replace(member.adapters[0], sha256="ab" * 32)])
    with pytest.raises(ConfigError, match=r"camera-adapter-1\.safetensors: is another file than its entry says"):
        fused.load(folder)
    fused.load(folder, without=["camera"])  # the base still stands


def test_a_failed_gate_names_itself_its_number_and_its_limit(written):
    folder, _ = written
    about = fused.read(folder)
    gate = msgspec.structs.replace(about.result.gates[0], name="retention cam0", value=0.5, limit=0.99)
    failed = msgspec.structs.replace(about, result=msgspec.structs.replace(about.result, gates=[gate]))
    assert not failed.result.passed
    with pytest.raises(GateError, match=r"gate `retention cam0` is 0\.5, must be at least 0\.99"):
        fused.must_pass(failed, folder)


# Plans and commands

WRONG = {
    "nothing left to learn from": ("validation = 0.5\nheld_out = 0.5", "leave something to learn from"),
    "a rank of 0": ("[lora]\nranks = [0]", "ranks must be at least 1"),
    "a rank named twice": ("[lora]\nranks = [2, 2]", "each named once"),
    "all sensors dropped": ("drop = 1.0", "drop must be at least 0 and below 1"),
    "a stage that is no name": ('stage = "a/b"', "stage must be of letters and digits"),
    "an unknown key": ("rank = 4", "unknown key 'rank'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_plan_that_contradicts_itself_is_refused_as_it_is_read(name):
    text, told = WRONG[name]
    top, _, tables = text.partition("[")
    whole = f'registry = "r"\nout = "o"\n{top}\n[[recordings]]\npath = "a"\n{"[" + tables if tables else ""}'
    with pytest.raises(ConfigError, match=told):
        config.loads(whole, AdaptPlan)
    assert config.loads('registry = "r"\n[[recordings]]\npath = "a"\n', RegisterPlan).epochs > 0


PLAN = """
registry = "registry"
epochs = 2
batch = 16
{more}
[[recordings]]
path = "line.mcap"
{tables}
"""
PREPARE = '[[prepare]]\ntype = "camera/1"\nframes = 1\nheight = 32\nwidth = 32\n[[prepare]]\ntype = "series/1"\n'


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line")
    labelled_scene.record(folder / "line.mcap", 180)
    (folder / "register.toml").write_text(PLAN.format(more="", tables=PREPARE + "channels = 1\nsamples = 64\n"))
    tables = "[lora]\nranks = [2]\n[umt]\nepochs = 1\n"
    (folder / "adapt.toml").write_text(PLAN.format(more='out = "fused"', tables=tables))
    return folder


def command(*given):
    return CliRunner().invoke(app, [*map(str, given), "--json"])


@pytest.mark.slow
def test_the_commands_make_a_registry_and_a_fused_model_of_a_labelled_recording(line):
    made = command("register", line / "register.toml")
    assert made.exit_code == 0, made.output
    entries = {row["modality"]: row for row in json.loads(made.stdout)["entries"]}
    assert set(entries) == {"camera", "series"}
    assert entries["camera"]["names"] == ["idle", "jam", "running"]  # jam is labelled as a fault
    done = command("adapt", line / "adapt.toml")
    told = json.loads(done.stdout)
    failed = [gate["name"] for gate in told["gates"] if not gate["passed"]]
    assert isinstance(done.exception, GateError) == bool(failed)
    assert told["passed"] == (not failed)
    assert set(told["frozen"].values()) == {row["sha256"] for row in entries.values()}
    assert {row["sensor"] for row in told["contributions"]} == {"cam0", "pump0", "pump1"}
    assert told["warnings"] == []
    assert fused.load(line / "fused").names == ("idle", "jam", "running")
    again = command("adapt", line / "adapt.toml")
    assert json.loads(again.stdout) == told
    (line / "other.toml").write_text((line / "adapt.toml").read_text().replace("epochs = 2", "epochs = 1"))
    with pytest.raises(ConfigError, match="holds the fused model of another plan"):
        raise command("adapt", line / "other.toml").exception


def test_adapting_without_a_registry_or_with_a_modality_that_lacks_an_entry_is_refused(line, tmp_path):
    text = PLAN.format(more='out = "fused"', tables="").replace("line.mcap", str(line / "line.mcap"))
    (tmp_path / "adapt.toml").write_text(text)
    with pytest.raises(ConfigError, match="is no registry"):
        raise command("adapt", tmp_path / "adapt.toml").exception
    asked = PLAN.format(more='modalities = ["series"]', tables="[[prepare]]\ntype='series/1'\nchannels=1\nsamples=64")
    (tmp_path / "register.toml").write_text(asked.replace("line.mcap", str(line / "line.mcap")))
    assert command("register", tmp_path / "register.toml").exit_code == 0
    refused = command("adapt", tmp_path / "adapt.toml")
    assert isinstance(refused.exception, ConfigError)
    assert "camera" in str(refused.exception)
    assert "has no entry, and no modality enters fusion without one" in str(refused.exception)


def test_a_recording_without_labels_is_refused(tmp_path):
    path = labelled_scene.record(tmp_path / "line.mcap", 12, labels=False)
    (tmp_path / "register.toml").write_text(PLAN.format(more="", tables=""))
    with pytest.raises(RecordingError, match="carries no label: a classifier needs two labels") as refused:
        raise command("register", tmp_path / "register.toml").exception
    assert Path(path).name in str(refused.value)


def test_a_foreign_backbone_enters_by_its_feature_file_and_another_one_is_refused(tmp_path):
    scene = labelled_scene.dataset(count=180, sensors=("aux0",))
    rows, backbone = scene.views["aux0"].inputs, "9a" * 32
    sensors = {
        name: SensorFeatures(name, rows + k, np.ones(180, np.bool_)) for k, name in enumerate(("gauge", "meter"))
    }

    def write(name, backbone):
        hashes = dict.fromkeys(sensors, backbone)
        file = FeatureFile(sensors, hashes, scene.start_ns, NS, NS, scene.labels)
        feature_files.write(tmp_path / name, file)

    write("line.safetensors", backbone)
    write("other.safetensors", "77" * 32)
    text = PLAN.replace("line.mcap", "line.safetensors")
    (tmp_path / "register.toml").write_text(text.format(more="", tables=""))
    (tmp_path / "adapt.toml").write_text(text.format(more='out = "f"', tables="[lora]\nranks = [2]\n[umt]\nepochs = 1"))
    made = command("register", tmp_path / "register.toml")
    assert made.exit_code == 0, made.output
    assert {row["prepare"]["backbone"] for row in json.loads(made.stdout)["entries"]} == {backbone}
    assert json.loads(command("adapt", tmp_path / "adapt.toml").stdout)["frozen"].keys() == {"gauge", "meter"}
    (tmp_path / "adapt.toml").write_text(
        (tmp_path / "adapt.toml").read_text().replace("line.safe", "other.safe").replace('"f"', '"g"')
    )
    with pytest.raises(ConfigError, match="backbone is 777777777777, but 9a9a9a9a9a9a was used before it"):
        raise command("adapt", tmp_path / "adapt.toml").exception


def test_a_model_registered_on_other_windows_is_told(known, data):
    assert adapt._elsewhere(known, data, adapt_plan(validation=0.25, held_out=0.25)) != []
    own = register_plan(validation=0.25, held_out=0.25)
    same = {"gauge": registry.make(data, "gauge", own)}
    assert adapt._elsewhere(same, data, adapt_plan(validation=0.25, held_out=0.25)) == []
    other = by_time(labelled_scene.dataset(seed=9), 0.25, 0.25, "scene")
    (told,) = adapt._elsewhere(same, other, adapt_plan(validation=0.25, held_out=0.25))
    assert told.startswith("gauge: registered on other recordings")
