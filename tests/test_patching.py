"""A device that has a version fetches the delta to the next one, and the whole file wherever that does not work out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests import tiny_encoder
from tests.test_updater import Bench

BALLAST = np.random.default_rng(0).integers(-127, 128, 300_000).astype(np.int8)


def publish(bench: Bench, version: int) -> bytes:
    """A camera encoder that is worth a delta: a few of its many weights are others in each version."""
    path = tiny_encoder.write(bench.folder, "camera", version)
    model = onnx.load(path)
    weights = BALLAST.copy()
    weights[:: 100 + version] += 1
    model.graph.initializer.append(numpy_helper.from_array(weights, "ballast"))
    path.write_bytes(model.SerializeToString())
    bench.repo.publish([path])
    bench.repo.point("camera", version)
    return path.read_bytes()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    publish(made, 1)
    assert made.update() == 1
    made.server.asked.clear()
    yield made
    made.server.close()


def fetched(bench: Bench) -> list[str]:
    """Which models and deltas were asked for."""
    return [path.rpartition(".")[2] for path in bench.server.asked if path.endswith((".onnx", ".delta"))]


def test_only_the_delta_travels(bench: Bench) -> None:
    new = publish(bench, 2)
    assert bench.update() == 2
    slot = bench.slots.current("camera")
    assert slot is not None
    assert slot.path.read_bytes() == new
    assert slot.target == "models/camera/camera-2.onnx"
    assert fetched(bench) == ["delta"]
    assert bench.file(".delta").stat().st_size < 0.1 * len(new)


def test_a_device_that_slept_through_a_version_has_its_delta_too(bench: Bench) -> None:
    publish(bench, 2)
    publish(bench, 3)
    assert bench.update() == 3
    assert fetched(bench) == ["delta"]


def test_the_other_slot_serves_as_well(bench: Bench) -> None:
    publish(bench, 2)
    assert bench.update() == 2
    bench.slots.rollback("camera")
    publish(bench, 3)
    assert bench.update() == 3
    assert fetched(bench) == ["delta", "delta"]


def test_a_first_encoder_comes_whole(bench: Bench) -> None:
    assert not [path for path in bench.repo.roles.folder.rglob("*") if path.suffix == ".delta"]


@pytest.mark.parametrize("fault", ["damaged", "missing", "cut", "longer"])
def test_a_delta_that_does_not_come_whole_costs_only_its_bytes(bench: Bench, fault: str) -> None:
    new = publish(bench, 2)
    data = bench.file(".delta").read_bytes()
    sent = {"damaged": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-9], "longer": data + b"x"}
    if fault == "missing":
        bench.file(".delta").unlink()
    else:
        bench.file(".delta").write_bytes(sent[fault])
    assert bench.update() == 2
    slot = bench.slots.current("camera")
    assert slot is not None
    assert slot.path.read_bytes() == new
    assert fetched(bench) == ["delta", "onnx"]


def test_a_signed_delta_that_leads_elsewhere_is_not_believed(bench: Bench) -> None:
    """The hash of what it makes is asked of the file that was signed, not of the delta."""
    publish(bench, 2)
    elsewhere = bench.file(".delta").read_bytes()
    new = publish(bench, 3)
    roles = bench.repo.roles
    metadata = roles.read("camera")
    for name in [name for name in metadata.signed.targets if name.startswith("models/camera/camera-3.from-")]:
        bench.repo._add(metadata, name, elsewhere, None)
    roles.commit({"camera": metadata})
    assert bench.update() == 3
    slot = bench.slots.current("camera")
    assert slot is not None
    assert slot.path.read_bytes() == new
    assert fetched(bench) == ["delta", "onnx"]
