"""What a candidate is worth: counted directly, and never evaluated twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from secateur.configs.schema import Repair, SearchRepair
from secateur.envs import CandidateEvaluator, Evaluation, RewardWeights
from secateur.networks.inference import accuracy, logits
from secateur.pruners import Compressor, Context


def labelled(model: nn.Module, name: str, count: int = 40) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Search images of which the dense network gets about two thirds right."""
    x = zoo.images(name, count, seed=50)
    with torch.no_grad():
        labels = model(x).argmax(1)
    labels[::3] = (labels[::3] + 1) % zoo.CLASSES
    return [(x[:15], labels[:15]), (x[15:], labels[15:])]


def make(name: str, counts: tuple[int, ...] = (24, 24, 16)) -> Compressor:
    return Compressor(Context(zoo.make(name), zoo.structure(name), zoo.batches(name, counts), "l1"))


@pytest.fixture
def compressor() -> Compressor:
    return make("digits")


GRAM = SearchRepair(kind="gram")


def test_dense_figures_are_a_direct_count(compressor: Compressor) -> None:
    search = labelled(compressor.dense, "digits")
    evaluator = CandidateEvaluator(compressor, search, GRAM)
    with torch.no_grad():
        right = sum(int((compressor.dense(x).argmax(1) == y).sum()) for x, y in search)
    assert right == 40 - 14
    assert evaluator.dense == Evaluation(100.0 * right / 40, 0.0, 1.0, 1.0)
    assert accuracy(compressor.dense, search) == 100.0 * right / 40
    assert logits(compressor.dense, search).shape == (40, zoo.CLASSES)
    whole = evaluator.evaluate(compressor.structure.units)
    assert whole.as_dict() == pytest.approx(evaluator.dense.as_dict(), abs=1e-9)


@pytest.mark.parametrize("kind", ["none", "gram", "sequential"])
def test_a_candidates_figures(compressor: Compressor, kind: str) -> None:
    search = labelled(compressor.dense, "digits")
    repair = Repair(kind=kind, refit=False, guard=False)
    evaluator = CandidateEvaluator(compressor, search, repair)
    kept = compressor.structure.units // 2
    found = evaluator.evaluate(kept)
    candidate = compressor(kept, repair)
    x, y = (torch.cat(parts) for parts in zip(*search, strict=True))
    with torch.no_grad():
        dense, pruned = compressor.dense(x), candidate(x)
    assert found.accuracy == pytest.approx(100 * (pruned.argmax(1) == y).double().mean().item())
    expected = (pruned - dense).square().sum(1).mean() / dense.var(0).sum()
    assert found.reconstruction_loss == pytest.approx(expected.item(), rel=1e-5)
    assert found.flops == compressor.structure.fraction("flops", kept)
    assert found.params == compressor.structure.fraction("params", kept)
    assert evaluator.measure(candidate, kept).as_dict() == pytest.approx(found.as_dict(), rel=1e-5)
    assert found.as_dict() == {
        name: getattr(found, name) for name in ("accuracy", "reconstruction_loss", "flops", "params")
    }


def test_a_candidate_is_repaired_as_asked(compressor: Compressor) -> None:
    search, kept = labelled(compressor.dense, "digits"), compressor.structure.units // 2
    found = set()
    for asked in ({}, {"refit": True}, {"images": 15}, {"samples": 3}, {"adaptive_bn": 20}):
        repair = Repair(**{"refit": False, **asked}, guard=False)
        evaluator = CandidateEvaluator(compressor, search, repair)
        candidate = compressor(kept, repair)
        assert evaluator.evaluate(kept) == evaluator.measure(candidate, kept)
        found.add(evaluator.evaluate(kept).reconstruction_loss)
    assert len(found) == 5


def test_repair_pays() -> None:
    compressor = make("vgg", (150, 150))
    search = labelled(compressor.dense, "vgg")
    kept = compressor.structure.units // 2
    none, sequential = (
        CandidateEvaluator(compressor, search, SearchRepair(kind=kind)).evaluate(kept)
        for kind in ("none", "sequential")
    )
    assert sequential.reconstruction_loss < none.reconstruction_loss


def test_nothing_is_evaluated_twice(compressor: Compressor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = Compressor.__call__

    def counted(self: Compressor, kept: np.ndarray, *args, **kwargs) -> nn.Module:
        calls.append(tuple(kept))
        return original(self, kept, *args, **kwargs)

    monkeypatch.setattr(Compressor, "__call__", counted)
    evaluator = CandidateEvaluator(compressor, labelled(compressor.dense, "digits"), GRAM)
    half, quarter = compressor.structure.units // 2, compressor.structure.units // 4
    results = [evaluator.evaluate(kept) for kept in (half, quarter, half, half.copy(), quarter)]
    assert calls == [tuple(half), tuple(quarter)]
    assert results[0] is results[2] is results[3]
    assert set(evaluator.known) == set(calls)

    resumed = CandidateEvaluator(compressor, labelled(compressor.dense, "digits"), GRAM)
    resumed.known |= evaluator.known
    assert resumed.evaluate(half) == results[0]
    assert len(calls) == 2


def test_time_is_accounted_for(compressor: Compressor) -> None:
    evaluator = CandidateEvaluator(
        compressor, labelled(compressor.dense, "digits"), SearchRepair(kind="gram", adaptive_bn=10)
    )
    assert evaluator.seconds["evaluate"] == 0.0
    evaluator.evaluate(compressor.structure.units // 2)
    assert set(evaluator.seconds) == {"prune", "repair", "adaptive_bn", "evaluate"}
    assert all(seconds > 0.0 for seconds in evaluator.seconds.values())


@pytest.mark.parametrize(("value", "message"), [(0.0, "constant"), (float("nan"), "not finite"), (1e30, "not finite")])
def test_a_dense_network_that_says_nothing(compressor: Compressor, value: float, message: str) -> None:
    with torch.no_grad():
        compressor.dense.linear.weight.fill_(value)
    with pytest.raises(
        ValueError, match=rf"outputs on the search images are {message}: check its weights and the data"
    ):
        CandidateEvaluator(compressor, zoo.batches("digits"), GRAM)


def test_a_candidate_that_diverges_is_worth_little_but_a_number(
    compressor: Compressor, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = CandidateEvaluator(compressor, labelled(compressor.dense, "digits"), GRAM)
    broken = compressor(compressor.structure.units // 2, GRAM)
    with torch.no_grad():
        broken.linear.weight.fill_(float("nan"))
    found = evaluator.measure(broken, compressor.structure.units // 2)
    assert np.isfinite(found.reconstruction_loss)
    assert found.reconstruction_loss > 1e30
    assert np.isfinite(RewardWeights().quality(found))
