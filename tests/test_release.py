"""Cards: to metadata and back, accepted or refused by name, and the self-test on golden vectors."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from lineside import features, release
from lineside.errors import ReleaseError
from tests import tiny_encoder

MODALITIES = ("camera", "microphone", "series")


def changed(card: release.Card, **fields: object) -> release.Card:
    return msgspec.structs.replace(card, **fields)


def gates(*rows: release.Gate) -> release.Certificate:
    return release.Certificate(stage=2, parent="stage-1", embedding_drift={}, similarity_drift={}, gates=list(rows))


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_card_survives_the_metadata(modality: str) -> None:
    card = tiny_encoder.card(modality, 3)
    metadata = release.to_metadata(card)
    assert release.from_metadata({**metadata, "producer": "x", "lineside.unknown": "1"}, "f.onnx") == card
    assert card.name == f"{modality}-3"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda metadata: metadata.pop("lineside.space"),
        lambda metadata: metadata.update({"lineside.version": '"three"'}),
        lambda metadata: metadata.update({"lineside.version": "{"}),
        lambda metadata: metadata.update({"lineside.certificate": "null"}),
        lambda metadata: metadata.clear(),
    ],
)
def test_metadata_that_is_no_card_is_refused_by_name(spoil) -> None:
    metadata = release.to_metadata(tiny_encoder.card())
    spoil(metadata)
    with pytest.raises(ReleaseError, match=r"f\.onnx: card failed") as refused:
        release.from_metadata(metadata, "f.onnx")
    assert refused.value.check == "card"


def test_a_release_beside_its_peers_is_accepted() -> None:
    running = {"microphone": tiny_encoder.card("microphone", 4), "camera": tiny_encoder.card("camera", 1, space="old")}
    release.accept(tiny_encoder.card("camera", 2), running)  # its own predecessor may be of another space
    with pytest.raises(ReleaseError) as refused:
        release.accept(tiny_encoder.card("series", 1), running)
    assert refused.value.check == "space"


@pytest.mark.parametrize(
    ("fields", "check"),
    [
        ({"prepare": '{"type":"camera/9"}'}, "prepare"),
        ({"prepare_sha256": "0" * 64}, "prepare"),
        ({"modality": "microphone"}, "prepare"),
        ({"certificate": gates(release.Gate("drift", 0.2, 0.1, at_most=True))}, "gates"),
        ({"certificate": gates(release.Gate("retention", 0.9, 0.95, at_most=False))}, "gates"),
        ({"certificate": gates(tiny_encoder.PASSED, release.Gate("drift", float("nan"), 0.1, at_most=True))}, "gates"),
        ({"space": "elsewhere"}, "space"),
    ],
)
def test_what_is_refused_is_refused_by_the_name_of_the_check(fields: dict[str, object], check: str) -> None:
    card = tiny_encoder.card("camera", 2)
    running = {"microphone": tiny_encoder.card("microphone")}
    release.accept(card, running)
    with pytest.raises(ReleaseError) as refused:
        release.accept(changed(card, **fields), running)
    assert refused.value.check == check
    assert refused.value.exit_code == 5


@pytest.mark.parametrize("modality", MODALITIES)
def test_golden_vectors_survive_the_card(modality: str) -> None:
    spec = tiny_encoder.PREPARE[modality]
    windows, expected = release.unpack_golden(tiny_encoder.card(modality))
    for window, made in zip(windows, features.golden_windows(spec), strict=True):
        assert np.array_equal(window.data, made.data)
        assert (window.rate_hz, window.modality) == (made.rate_hz, modality)
    assert expected.shape == (2, tiny_encoder.card(modality).dim)


def test_the_self_test_knows_a_right_encoder_from_a_wrong_one() -> None:
    card = tiny_encoder.card("camera")
    assert release.self_test(card, tiny_encoder.embed) <= 1e-6
    for wrong in (
        lambda batch: tiny_encoder.embed(batch)[:, ::-1],
        lambda batch: tiny_encoder.embed(batch)[:, :2],
        lambda batch: tiny_encoder.embed(batch) * np.float32("nan"),
        lambda batch: tiny_encoder.embed(batch) * np.float32(0),
    ):
        with pytest.raises(ReleaseError) as refused, np.errstate(invalid="ignore"):
            release.self_test(card, wrong)
        assert refused.value.check == "golden"


def test_windows_of_another_length_are_refused_and_any_will_do_where_nobody_knows() -> None:
    card = changed(tiny_encoder.card("camera", 2), window_s=1.0)
    for other in (card, changed(card, window_s=0.0)):
        release.accept(other, {}, 1.0)
        release.accept(other, {})
    with pytest.raises(ReleaseError, match=r"windows of 1 s, and would get windows of 2 s") as refused:
        release.accept(card, {}, 2.0)
    assert refused.value.check == "windows"
    release.accept(changed(card, window_s=0.0), {}, 2.0)
