"""The published rule against golden vectors of its authors' code (dns.md, T16), and what it does not keep."""

from pathlib import Path

import numpy as np
import pytest
import torch

from trainer import published

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs ../shared/golden beside the repository")


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as held:
        return {key: torch.from_numpy(held[key]) if held[key].dtype.kind == "f" else held[key] for key in held.files}


def close(got, want, tolerance):
    assert float((got - want).abs().max()) <= tolerance * max(1.0, float(want.abs().max()))


def test_projectors_by_an_absolute_threshold():
    held = load("dns_projector")
    for k, threshold in enumerate(held["lambda_min"][:3]):
        close(published.projector(held["A"], float(threshold)), held[f"P{k}"], 1e-12)


def test_the_one_way_loss_and_its_gradients():
    held = load("dns_loss")
    wa, ba, wb, bb = (held[name].clone().requires_grad_() for name in ("Wa", "ba", "Wb", "bb"))
    loss = published.info_nce(held["xa"] @ wa.T + ba, held["xb"] @ wb.T + bb)
    loss.backward()
    close(loss.detach(), held["loss"], 1e-10)
    for weight, name in ((wa, "Wa"), (ba, "ba"), (wb, "Wb"), (bb, "bb")):
        close(weight.grad, held[f"grad_{name}"], 1e-10)


def test_the_thresholded_rule_drifts_with_the_square_of_the_step():
    held = load("dns_paper_projection")
    da, db = (published.project(held[f"G{m}"], held[f"Pout_{m}"], held[f"Pin_{m}"]) for m in "ab")
    close(da, held["Da"], 1e-10)
    close(db, held["Db"], 1e-10)
    old = (held["Xa"] @ held["Wa"].T) @ (held["Xb"] @ held["Wb"].T).T
    for eta, want in zip(held["eta"], held["max_drift"], strict=True):
        wa, wb = held["Wa"] - eta * da, held["Wb"] - eta * db
        drift = ((held["Xa"] @ wa.T) @ (held["Xb"] @ wb.T).T - old).abs().max()
        assert float(drift) == pytest.approx(float(want), rel=1e-6, abs=1e-12)


def test_a_sequence_of_four_steps():
    held = load("dns_sequence")
    statistics = published.Statistics(dim=8)
    for t, pair in enumerate(tuple(str(name) for name in row) for row in held["pairs"]):
        features = held[f"t{t}_Xa"], held[f"t{t}_Xb"]
        weights = [held[f"t{t}_W{m}_before"].clone().requires_grad_() for m in "ab"]
        sides = [statistics.projectors(name, float(held["lambda_min"])) for name in pair]
        for m, (outputs, inputs) in zip("ab", sides, strict=True):
            close(outputs, held[f"t{t}_Pout_{m}"], 1e-9)
            close(inputs, held[f"t{t}_Pin_{m}"], 1e-9)
        for step in range(int(held["iters"])):
            loss = published.info_nce(*(x @ w.T for x, w in zip(features, weights, strict=True)))
            gradients = torch.autograd.grad(loss, weights)
            moves = [published.project(g, *s) for g, s in zip(gradients, sides, strict=True)]
            if step == 0:
                close(loss.detach(), held[f"t{t}_loss0"], 1e-9)
                for m, gradient, move in zip("ab", gradients, moves, strict=True):
                    close(gradient, held[f"t{t}_G{m}"], 1e-9)
                    close(move, held[f"t{t}_G{m}_proj"], 1e-9)
            with torch.no_grad():
                for weight, move in zip(weights, moves, strict=True):
                    weight.sub_(float(held["lr"]) * move)
        for m, weight in zip("ab", weights, strict=True):
            close(weight.detach(), held[f"t{t}_W{m}_after"], 1e-7)
        statistics.book(pair, features, tuple(weight.detach() for weight in weights))
        assert statistics.count == int(held[f"t{t}_nbar"])
        for name in statistics.inputs:
            close(statistics.inputs[name], held[f"t{t}_Cin_{name}"], 1e-11)
            close(statistics.outputs[name], held[f"t{t}_Cout_{name}"], 1e-11)
