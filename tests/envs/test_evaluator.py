from __future__ import annotations

import numpy as np
import pytest
import torch

from secateur.envs import STATIC_FEATURES, CandidateEvaluator, layer_statistics
from secateur.envs.evaluator import accuracy
from secateur.networks import digits_resnet
from secateur.pruners.coupling import find_layers
from secateur.pruners.pruner import ChannelPruner


def batches(count: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(20, 1, 8, 8, generator=generator), torch.randint(0, 10, (20,), generator=generator))
        for _ in range(count)
    ]


@pytest.fixture
def pruner() -> ChannelPruner:
    torch.manual_seed(0)
    model = digits_resnet().eval()
    return ChannelPruner(model, find_layers(model, (1, 8, 8)), "l1", batches(3, 0))


def test_the_dense_network_loses_nothing(pruner):
    evaluator = CandidateEvaluator(pruner, batches(2, 1))
    whole = evaluator.evaluate(pruner.structure.widths)
    images, labels = (torch.cat(part) for part in zip(*batches(2, 1), strict=True))
    with torch.inference_mode():
        right = (pruner.dense(images).argmax(1) == labels).float().mean()
    assert evaluator.dense.accuracy == pytest.approx(100 * float(right), abs=1e-4)
    assert whole.accuracy == evaluator.dense.accuracy == pytest.approx(accuracy(pruner.dense, batches(2, 1)))
    assert whole.reconstruction_loss == pytest.approx(0.0, abs=1e-9)
    assert (whole.flops, whole.params) == (1.0, 1.0)


def test_the_loss_is_the_logit_distance_over_the_logits_variance(pruner):
    evaluator = CandidateEvaluator(pruner, batches(2, 1), repair="none")
    widths = pruner.structure.widths // 2
    images = torch.cat([x for x, _ in batches(2, 1)])
    with torch.inference_mode():
        dense, pruned = pruner.dense(images).double(), pruner.prune(widths)(images).double()
    expected = (pruned - dense).square().sum(1).mean() / dense.var(0).sum()
    assert evaluator.evaluate(widths).reconstruction_loss == pytest.approx(float(expected), rel=1e-4)


def test_repair_brings_the_logits_nearer_where_it_was_fitted(pruner):
    widths = pruner.structure.widths * 3 // 4
    none, sequential = (
        CandidateEvaluator(pruner, pruner.calibration, repair=repair, refit=True).evaluate(widths)
        for repair in ("none", "sequential")
    )
    assert sequential.reconstruction_loss < 0.5 * none.reconstruction_loss


def test_no_candidate_is_judged_twice(pruner, monkeypatch):
    evaluator = CandidateEvaluator(pruner, batches(1, 1), repair="none")
    calls = []
    judge = evaluator._judge
    monkeypatch.setattr(evaluator, "_judge", lambda *args: calls.append(args) or judge(*args))
    for widths in ([8, 8, 16, 16, 32, 32], [8, 8, 16, 16, 32, 31], [8, 8, 16, 16, 32, 32]):
        evaluator.evaluate(np.array(widths))
    assert len(calls) == 2
    assert evaluator.seconds["evaluate"] > 0


@pytest.mark.parametrize(("value", "what"), [(0.0, "constant"), (float("inf"), "not finite")])
def test_logits_that_say_nothing_are_refused(pruner, value, what):
    pruner.dense.linear.weight.data.fill_(0.0)
    pruner.dense.linear.bias.data.fill_(value)
    with pytest.raises(ValueError, match=f"{what}: check its weights"):
        CandidateEvaluator(pruner, batches(1, 1))


def test_statistics_are_named_scaled_and_tell_layers_apart(pruner):
    statistics = layer_statistics(pruner)
    assert statistics.shape == (6, len(STATIC_FEATURES))
    assert statistics.min() >= 0.0
    assert statistics.max() <= 1.0
    columns = dict(zip(STATIC_FEATURES, statistics.T, strict=True))
    assert columns["index"].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert columns["stride"].tolist() == [0.25, 0.25, 0.5, 0.25, 0.5, 0.25]
    assert np.all(columns["error_25"] < columns["error_50"])
    assert np.all(columns["error_50"] < columns["error_75"])
    assert columns["flops"].max() == 1.0
