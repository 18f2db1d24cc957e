"""How a device changes encoders while it runs: edge.changeover and edge.rollout, and a signed repository over HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge.changeover import Changeover
from edge.commissioning import MOST_MOMENTS
from edge.config import CommissioningSettings, RepositorySettings, SensorSettings
from edge.pipeline import Pipeline
from edge.replay import simulated, through
from lineside.errors import LinesideError
from lineside.messages import Score
from tests.line_broker import wait
from tests.line_changeover import Bench, make, recorded, served, started
from tests.line_device import SENSORS, START_NS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("line"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, recording: Path) -> Path:
    return make(tmp_path_factory.mktemp("made"), recording)


@pytest.fixture
def bench(tmp_path: Path, made: Path, recording: Path) -> Iterator[Bench]:
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    with served(tmp_path) as url:
        yield started(tmp_path, recording, url)


def test_first_encoders_come_from_the_repository_and_an_update_learns_normal_anew(bench: Bench) -> None:
    before = bench.changeover.pipeline.ensemble
    assert before is not None
    assert before.versions == {"camera": "1", "microphone": "1"}
    bench.publish(2)
    assert bench.update("camera", asked=False) == "2"
    after = bench.changeover.pipeline.ensemble
    assert after is not None
    assert after.versions == {"camera": "2", "microphone": "1"}
    assert after.encoders["microphone"] is before.encoders["microphone"]
    assert before.normal is not None
    assert after.normal is not None
    assert not (after.normal.coresets["cam0"].bank == before.normal.coresets["cam0"].bank).all()
    assert (after.normal.coresets["mic0"].bank == before.normal.coresets["mic0"].bank).all()
    health = bench.changeover.health()["camera"]
    assert (health.version, health.previous) == ("2", "1")


@pytest.mark.slow
def test_a_version_rolled_back_from_is_taken_again_only_when_asked(bench: Bench) -> None:
    bench.publish(2)
    bench.update("camera", asked=False)
    bench.rollout.rollback("camera")
    assert bench.version == "1"
    assert bench.update("camera", asked=False) == "1"
    assert bench.version == "1"
    assert bench.slots.current("camera").version == 1
    assert bench.update("camera") == "2"
    assert bench.slots.current("camera").version == 2
    assert bench.update("microphone", asked=False) == "1"


def test_a_version_that_fails_its_self_test_is_declined(bench: Bench) -> None:
    before = bench.changeover.pipeline.ensemble
    bench.publish(2, golden=golden_of_another(bench))
    bench.update("camera", asked=False)
    assert "golden failed" in bench.rollout.problems["camera"]
    assert bench.rollout.installed["camera"].phase == "failed"
    assert bench.changeover.pipeline.ensemble is before
    assert bench.slots.current("camera").version == 1
    assert bench.slots.previous("camera") is None
    assert bench.update("camera", asked=False) == "1"  # not tried a second time
    with pytest.raises(LinesideError, match="golden failed"):
        bench.update("camera")
    bench.publish(3)
    assert bench.update("camera", asked=False) == "3"


def golden_of_another(bench: Bench) -> bytes:
    """Embeddings of the right shape that no version of the camera's encoder gives."""
    assert bench.changeover.pipeline.ensemble is not None
    expected = np.frombuffer(bench.changeover.pipeline.ensemble.encoders["camera"].card.golden_outputs, "<f4")
    return np.roll(expected, 7).astype("<f4").tobytes()


def test_normal_running_is_kept_over_a_restart_without_recording_or_server(bench: Bench) -> None:
    bench.publish(2)
    bench.update("camera")
    config = msgspec.structs.replace(
        bench.changeover.config, commissioning=CommissioningSettings(), repository=RepositorySettings()
    )
    again = Changeover(config, bench.folder, Pipeline(config), bench.slots, None)
    again.begin()
    assert again.pipeline.commissioning is None
    assert again.pipeline.ensemble is not None
    assert again.pipeline.ensemble.versions["camera"] == "2"
    assert again.pipeline.ensemble.normal is not None


def test_a_sensor_that_was_taken_away_does_not_stop_the_others(bench: Bench) -> None:
    config = msgspec.structs.replace(bench.changeover.config, sensors=SENSORS[1:])
    again = Changeover(config, bench.folder, Pipeline(config), bench.slots, None)
    again.begin()
    assert again.pipeline.ensemble is not None
    assert again.pipeline.ensemble.normal is not None
    assert set(again.pipeline.ensemble.normal.coresets) == {"mic0"}


def test_a_sensor_that_was_added_stays_out_of_the_scores_until_it_is_commissioned(bench: Bench) -> None:
    """A plant adds a second microphone: nothing of what worked may fall silent."""
    added = SensorSettings(name="mic1", modality="microphone", source="simulation", seed=5)
    config = msgspec.structs.replace(bench.changeover.config, sensors=[*SENSORS, added])
    again = Changeover(config, bench.folder, Pipeline(config), bench.slots, None)
    again.begin()
    messages = list(through(again.pipeline, simulated(config, bench.folder, START_NS, 4.0)))
    scores = [message for message in messages if isinstance(message, Score)]
    assert len(scores) >= 5
    assert all(set(score.contributions) == {"cam0", "mic0"} for score in scores)
    assert all(score.absent == {"mic1": "not commissioned"} for score in scores)


def test_a_full_or_missing_state_folder_leaves_the_running_encoder(bench: Bench) -> None:
    bench.publish(2)
    before = bench.changeover.pipeline.ensemble
    (bench.folder / "state" / "slots" / "camera" / "b").write_text("in the way")
    bench.rollout.look()
    assert wait(lambda: bench.rollout.step() or "the running encoder stays" in bench.rollout.told)
    assert bench.changeover.pipeline.ensemble is before


def test_commissioning_from_live_moments_begins_anew_when_they_do_not_suffice(bench: Bench) -> None:
    config = msgspec.structs.replace(bench.changeover.config, commissioning=CommissioningSettings(minutes=0.1))
    (bench.folder / "state" / "commissioning.npz").unlink()
    pipeline = Pipeline(config)
    again = Changeover(config, bench.folder, pipeline, bench.slots, None)
    again.begin()
    live = pipeline.commissioning
    assert live is not None
    assert bench.changeover.commissioning is not None
    live.moments += bench.changeover.commissioning.moments[:20]
    live.start_ns += bench.changeover.commissioning.start_ns[:20]
    with pytest.raises(LinesideError, match="at least 40 are needed"):
        again.finish_commissioning()
    assert pipeline.commissioning is not None
    assert pipeline.commissioning.moments == []
    pipeline.commissioning.moments += bench.changeover.commissioning.moments
    pipeline.commissioning.start_ns += bench.changeover.commissioning.start_ns
    assert again.finish_commissioning()
    assert pipeline.commissioning is None
    assert pipeline.ensemble is not None
    assert pipeline.ensemble.normal is not None


def test_commissioning_again_may_keep_what_is_known(bench: Bench) -> None:
    config = msgspec.structs.replace(bench.changeover.config, commissioning=CommissioningSettings(minutes=0.1))
    pipeline = Pipeline(config)
    again = Changeover(config, bench.folder, pipeline, bench.slots, None)
    again.begin()
    known = again.commissioning
    assert known is not None
    for keep, expected in ((True, len(known.moments) + 50), (False, 50)):
        again.commission_again(keep=keep)
        live = pipeline.commissioning
        assert live is not None
        for moment, start_ns in zip(known.moments[:50], known.start_ns[:50], strict=True):
            live.add(moment, start_ns + 10**15)
        assert again.finish_commissioning()
        assert again.commissioning is not None
        assert len(again.commissioning.moments) == expected == len(again.commissioning.states)
        for moment, was in zip(again.commissioning.moments[-50:], live.moments, strict=True):
            assert all(np.array_equal(window, was[sensor]) for sensor, window in moment.items())
            assert not any(window.flags.writeable for window in moment.values())  # they lie in the file by now
        assert pipeline.ensemble is not None
        assert pipeline.ensemble.commissioned_ns == live.start_ns[-1]
        kept = again.kept()
        assert kept is not None
        assert len(kept.moments) == expected
    assert again.contract is None  # nothing was rehearsed in these: it is told, and the line is judged all the same


def test_what_is_kept_is_bounded(bench: Bench) -> None:
    known = bench.changeover.commissioning
    assert known is not None
    many = replace(known, moments=known.moments[:1] * 5_000, start_ns=[*range(5_000)], states=[""] * 5_000, faulty=())
    both = replace(known, faulty=()).after(many)
    assert len(both.moments) == len(both.start_ns) == len(both.states) <= MOST_MOMENTS
    assert both.start_ns[-len(known.moments) :] == known.start_ns  # what is new stays whole
    with pytest.raises(LinesideError, match="other sensors"):
        replace(known, modalities={"cam0": "camera"}).after(known)
