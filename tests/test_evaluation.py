"""Recordings judged against their labels, beside rivals: edge.evaluation."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from edge.__main__ import app
from edge.config import DeviceConfig, DeviceSettings
from edge.evaluation import recorded, report, rivals, sets
from edge.evaluation.digits import derangement
from edge.evaluation.section import Goal, Plot, Section, Table
from edge.faults import Injector
from edge.replay import simulated
from lineside import metrics
from lineside.clock import NS
from lineside.errors import ConfigError
from lineside.recording import About, Label, Recorder
from tests.line_device import MODALITIES, SENSORS, START_NS, install, record

FAULTS = (("black", 20, 30), ("gain_loss", 50, 62))  # kind, from and to in seconds


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_auroc_is_the_share_of_pairs(normal: list[int], faulty: list[int]) -> None:
    pairs = [(b > a) + (b == a) / 2 for a in normal for b in faulty]
    found = metrics.auroc(np.array(normal, float), np.array(faulty, float))
    assert found == pytest.approx(np.mean(pairs))


def test_what_moments_were() -> None:
    faults = recorded.joined(
        [
            Label(10, 20, "a", fault=True),
            Label(20, 30, "a", fault=True),
            Label(40, 50, "b", fault=True),
            Label(0, 99, "ok"),
        ]
    )
    assert [(label.start_ns, label.end_ns) for label in faults] == [(10, 30), (40, 50)]
    spans = ((0, 10), (5, 15), (15, 25), (29, 41), (41, 50))
    assert [recorded.truth(faults, *span) for span in spans] == ["", None, "a", None, "b"]


def test_every_digit_gets_a_sound_of_another() -> None:
    labels = list("0123456789" * 30)
    places = derangement(labels)
    assert all(labels[place] != label for place, label in zip(places, labels, strict=True))
    assert len(set(places.tolist())) > 0.9 * len(labels)


@pytest.mark.slow
def test_rivals_see_what_they_are_for() -> None:
    rng = np.random.default_rng(0)
    dark = rng.normal(100, 3, (200, 3, 8, 8))
    known = rivals.Seen("camera", dark, rng.normal(size=(200, 6)).astype(np.float32))
    bright = rivals.Seen("camera", dark[:40] + 40, known.features[:40])
    strange = rivals.Seen("camera", dark[:40], known.features[:40] + 6)
    assert rivals.loudness(known) is None
    for name, rival in rivals.RIVALS.items():
        told = rivals.evidence(
            rival, {"cam0": known}, {"cam0": strange if "T²" in name or "forest" in name else bright}
        )
        assert told is None if name == "loudness" else np.median(told) > 3, name
    calm = rivals.evidence(rivals.hotelling, {"cam0": known}, {"cam0": known})
    assert calm is not None
    assert np.median(calm) < 1.5


@pytest.mark.slow
def test_detectors_of_change_are_as_sensitive_as_normal_running_allows() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.standard_t(3, 3000), rng.normal(3, 1, 300)])
    watched = np.arange(len(values)) < 3000
    for name, make in rivals.CHANGES.items():
        strictness, told = rivals.tuned(make, values, watched, allowed=0)
        assert not any(watched[place] for place in told), name
        if strictness > rivals.STRICTNESS[0]:
            level, spread = values[watched].mean(), values[watched].std()
            looser = rivals.alarms(make(strictness - 1), (values - level) / spread)
            assert any(watched[place] for place in looser), name
    assert rivals.tuned(rivals.adwin, values, watched, 0)[1]  # and what is left of it sees the change


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device that knows what is normal, and `shift.mcap` with labelled faults; gives the device file."""
    base = tmp_path_factory.mktemp("device")
    settings = DeviceSettings(id="edge-1", site="line1", station="press")
    config = DeviceConfig(device=settings, sensors=SENSORS)
    install(base / "state")
    record(base / "normal.mcap", config, 100.0)
    injector = Injector()
    begin = START_NS + 1000 * NS
    with Recorder(base / "shift.mcap", About(station="press", sensors=MODALITIES)) as recorder:
        left = list(FAULTS)
        for samples in simulated(config, Path(), begin, 80):
            while left and samples.start_ns >= begin + left[0][1] * NS:
                kind, _, to_s = left.pop(0)
                injector.start(kind, begin + to_s * NS)
            recorder.write(injector.apply(samples))
        for kind, from_s, to_s in FAULTS:
            recorder.label(Label(begin + from_s * NS, begin + to_s * NS, kind, fault=True))
    (base / "device.toml").write_text(
        '[device]\nid = "edge-1"\nsite = "line1"\nstation = "press"\n'
        + "".join(
            f'[[sensors]]\nname = "{n}"\nmodality = "{m}"\nsource = "simulation"\n' for n, m in MODALITIES.items()
        )
    )
    return base / "device.toml"


def command(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.stdout


@pytest.mark.slow
def test_a_labelled_recording_is_evaluated_by_the_command(device: Path) -> None:
    plot = device.parent / "normal.png"
    told = json.loads(
        command("commission", "-c", device, "--recording", device.parent / "normal.mcap", "--plot", plot, "--json")
    )
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert {row["score"] for row in told["tables"][0]["rows"]} >= {"distance of cam0", "evidence of cam0+mic0"}
    assert told["contract"]["subsets"].keys() == {"cam0+mic0", "cam0", "mic0"}
    out = device.parent / "report.md"
    found = json.loads(
        command(
            "replay", "-c", device, "--recording", device.parent / "shift.mcap", "--evaluate", "--out", out, "--json"
        )
    )
    strange, false, late, causes = found[0]["tables"]
    by_kind = {row["fault"]: row for row in strange["rows"]}
    assert by_kind["gain_loss"]["mic0 alone"] > 0.95
    assert by_kind["gain_loss"]["mic0 alone"] > by_kind["gain_loss"]["cam0 alone"] + 0.2
    assert by_kind["gain_loss"].keys() >= set(rivals.RIVALS)
    assert {row["alarm"]: row["count"] for row in false["rows"]} == {"anomaly": 0, "drift": 0, "sensor": 0}
    assert all(row["at most (95 %)"] > 1000 for row in false["rows"])  # a minute proves next to nothing, and says so
    windows = {row["fault"]: row["device"] for row in late["rows"]}
    assert windows["black"] <= 2 + 3  # the first whole window of it ends after two hops; three of them
    assert windows["gain_loss"] is not None
    assert {(row["fault"], row["sensor"] > 0) for row in causes["rows"]} >= {("black", True)}
    text = out.read_text()
    assert "AUROC" in text
    assert (out.parent / text.split("](")[1].split(")")[0]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_evaluating_needs_a_recording_or_all(device: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["replay", "--evaluate"]).exit_code == 2
    assert runner.invoke(app, ["replay", "--evaluate", "--all", "-c", str(device)]).exit_code == 2
    assert runner.invoke(app, ["replay", "--all"]).exit_code == 2


def test_a_benchmark_that_cannot_run_says_why(tmp_path: Path) -> None:
    sections = list(sets.run(tmp_path, tmp_path, []))
    assert len(sections) == len(sets.SETS)
    assert all(section.told.startswith("Not run: ") and not section.goals for section in sections)
    with pytest.raises(ConfigError, match="skab"):
        list(sets.run(tmp_path, tmp_path, ["scab"]))


def test_a_report_shows_goals_that_were_missed(tmp_path: Path) -> None:
    line = Plot("course", "s", "y", {"a": (np.arange(3.0), np.arange(3.0))}, {"fault": 1.0}, {"limit": 2.0})
    missed, met = Goal("AUROC", 0.5, least=0.9), Goal("delay", 2.0, most=3.0)
    table = Table("Areas.", ("fault", "AUROC"), [("black", 0.98765), ("wind", None), ("hum", float("nan"))])
    section = Section("A set", "What was done.", [missed, met], [table], [line])
    written = report.write([section], tmp_path / "r.md", "Title", "command", "2026-01-01")
    text = written[0].read_text()
    assert "| A set | AUROC ≥ 0.9 | 0.5 | **no** |" in text
    assert "| A set | delay ≤ 3 | 2 | yes |" in text
    assert "| black | 0.988 |\n| wind |  |\n| hum | – |" in text
    assert "![course](r/a-set-1.png)" in text
    assert json.dumps(report.plain([section]))  # a NaN is no JSON
    assert report.plain([section])[0]["tables"][0]["rows"][2]["AUROC"] is None
