"""Toy networks as allocators see them."""

from __future__ import annotations

import pytest
import torch

import zoo
from secateur.agents import SearchProblem
from secateur.envs import Evaluation, RewardWeights
from secateur.pruners.budget import Budget
from secateur.pruners.context import Context


@pytest.fixture(scope="session")
def problem():
    """Makes the problem of a network in the zoo; networks and what criteria found on them are made once.

    Without a fraction the budget is halfway between the least that can be reached and all. `quality` evaluates one plan
    and is at most 0: what it lacks is the distance from the dense network; without it all plans are alike.
    """
    contexts = {}

    def evaluation(quality):
        return Evaluation(accuracy=100.0 * quality, reconstruction_loss=-quality, flops=1.0, params=1.0)

    def make(name="digits", fraction=None, kind="flops", cut="inner", **given):
        if (name, cut) not in contexts:
            layers = zoo.structure(name, cut)
            images = torch.randn(16, *layers.input_shape, generator=torch.Generator().manual_seed(1))
            contexts[name, cut] = Context(zoo.make(name), layers, [(images, torch.arange(16) % zoo.CLASSES)])
        context = contexts[name, cut]
        layers = zoo.timed(name, cut) if kind == "latency" else context.structure
        if fraction is None:
            least = Budget(layers, kind, 1.0, 0.9).least
            fraction = (1.0 + layers.fraction(kind, least)) / 2
        quality = given.pop("quality", lambda _kept: 0.0)
        given["evaluate"] = lambda plans: (evaluation(quality(kept)) for kept in plans)
        given["weights"] = RewardWeights(reconstruction=0.0)
        return SearchProblem(Budget(layers, kind, fraction, 0.9), context, **given)

    return make
