"""What a candidate is worth: counted directly, and never evaluated twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from secateur.envs import CandidateEvaluator, Evaluation, RewardWeights
from secateur.networks.inference import accuracy, logits
from secateur.pruners.compressor import ChannelPruner


def labelled(model: nn.Module, name: str, count: int = 40) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Search images of which the dense network gets about two thirds right."""
    x = zoo.images(name, count, seed=50)
    with torch.no_grad():
        labels = model(x).argmax(1)
    labels[::3] = (labels[::3] + 1) % zoo.CLASSES
    return [(x[:15], labels[:15]), (x[15:], labels[15:])]


@pytest.fixture
def pruner() -> ChannelPruner:
    return ChannelPruner(zoo.make("digits"), zoo.structure("digits"), "l1", zoo.batches("digits"))


def test_dense_figures_are_a_direct_count(pruner: ChannelPruner) -> None:
    search = labelled(pruner.dense, "digits")
    evaluator = CandidateEvaluator(pruner, search)
    with torch.no_grad():
        right = sum(int((pruner.dense(x).argmax(1) == y).sum()) for x, y in search)
    assert right == 40 - 14
    assert evaluator.dense == Evaluation(100.0 * right / 40, 0.0, 1.0, 1.0)
    assert accuracy(pruner.dense, search) == 100.0 * right / 40
    assert logits(pruner.dense, search).shape == (40, zoo.CLASSES)
    whole = evaluator.evaluate(pruner.structure.units)
    assert whole.as_dict() == pytest.approx(evaluator.dense.as_dict(), abs=1e-9)


@pytest.mark.parametrize("repair", ["none", "gram", "sequential"])
def test_a_candidates_figures(pruner: ChannelPruner, repair: str) -> None:
    search = labelled(pruner.dense, "digits")
    evaluator = CandidateEvaluator(pruner, search, repair=repair)  # type: ignore[arg-type]
    kept = pruner.structure.units // 2
    found = evaluator.evaluate(kept)
    candidate = pruner.prune(kept, repair)  # type: ignore[arg-type]
    x, y = (torch.cat(parts) for parts in zip(*search, strict=True))
    with torch.no_grad():
        dense, pruned = pruner.dense(x), candidate(x)
    assert found.accuracy == pytest.approx(100 * (pruned.argmax(1) == y).double().mean().item())
    expected = (pruned - dense).square().sum(1).mean() / dense.var(0).sum()
    assert found.reconstruction_loss == pytest.approx(expected.item(), rel=1e-5)
    assert found.flops == pruner.structure.fraction("flops", kept)
    assert found.params == pruner.structure.fraction("params", kept)
    assert evaluator.evaluate(candidate, kept).as_dict() == pytest.approx(found.as_dict(), rel=1e-5)
    assert found.as_dict() == {
        name: getattr(found, name) for name in ("accuracy", "reconstruction_loss", "flops", "params")
    }


def test_a_candidate_is_repaired_as_asked(pruner: ChannelPruner) -> None:
    search, kept = labelled(pruner.dense, "digits"), pruner.structure.units // 2
    found = set()
    for asked in ({}, {"refit": True}, {"images": 15}, {"samples": 3}, {"adaptive_bn": 20}):
        evaluator = CandidateEvaluator(pruner, search, repair="sequential", **asked)  # type: ignore[arg-type]
        candidate = pruner.prune(kept, "sequential", **asked, guard=False)  # type: ignore[arg-type]
        assert evaluator.evaluate(kept) == evaluator.evaluate(candidate, kept)
        found.add(evaluator.evaluate(kept).reconstruction_loss)
    assert len(found) == 5


def test_repair_pays() -> None:
    pruner = ChannelPruner(zoo.make("vgg"), zoo.structure("vgg"), "l1", zoo.batches("vgg", (150, 150)))
    search = labelled(pruner.dense, "vgg")
    kept = pruner.structure.units // 2
    none, sequential = (
        CandidateEvaluator(pruner, search, repair=repair).evaluate(kept)  # type: ignore[arg-type]
        for repair in ("none", "sequential")
    )
    assert sequential.reconstruction_loss < none.reconstruction_loss


def test_nothing_is_judged_twice(pruner: ChannelPruner, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = ChannelPruner.prune

    def counted(self: ChannelPruner, kept: np.ndarray, *args, **kwargs) -> nn.Module:
        calls.append(tuple(kept))
        return original(self, kept, *args, **kwargs)

    monkeypatch.setattr(ChannelPruner, "prune", counted)
    evaluator = CandidateEvaluator(pruner, labelled(pruner.dense, "digits"))
    half, quarter = pruner.structure.units // 2, pruner.structure.units // 4
    results = [evaluator.evaluate(kept) for kept in (half, quarter, half, half.copy(), quarter)]
    assert calls == [tuple(half), tuple(quarter)]
    assert results[0] is results[2] is results[3]
    assert set(evaluator.known) == set(calls)

    resumed = CandidateEvaluator(pruner, labelled(pruner.dense, "digits"))
    resumed.known |= evaluator.known
    assert resumed.evaluate(half) == results[0]
    assert len(calls) == 2


def test_time_is_accounted_for(pruner: ChannelPruner) -> None:
    evaluator = CandidateEvaluator(pruner, labelled(pruner.dense, "digits"), adaptive_bn=10)
    assert evaluator.seconds["evaluate"] == 0.0
    evaluator.evaluate(pruner.structure.units // 2)
    assert set(evaluator.seconds) == {"prune", "repair", "adaptive_bn", "evaluate"}
    assert all(seconds > 0.0 for seconds in evaluator.seconds.values())


@pytest.mark.parametrize(("value", "message"), [(0.0, "constant"), (float("nan"), "not finite"), (1e30, "not finite")])
def test_a_dense_network_that_says_nothing(pruner: ChannelPruner, value: float, message: str) -> None:
    with torch.no_grad():
        pruner.dense.linear.weight.fill_(value)
    with pytest.raises(ValueError, match=rf"logits on the search images are {message}: check its weights and the data"):
        CandidateEvaluator(pruner, zoo.batches("digits"))


def test_a_candidate_that_diverges_is_worth_little_but_a_number(
    pruner: ChannelPruner, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = CandidateEvaluator(pruner, labelled(pruner.dense, "digits"))
    broken = pruner.prune(pruner.structure.units // 2)
    with torch.no_grad():
        broken.linear.weight.fill_(float("nan"))
    found = evaluator.evaluate(broken, pruner.structure.units // 2)
    assert np.isfinite(found.reconstruction_loss)
    assert found.reconstruction_loss > 1e30
    assert np.isfinite(RewardWeights().reward(found))
