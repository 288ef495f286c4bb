"""Rules of what a method does with a network: cut it, mask it, describe it so that it can be made again."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from ..configs.schema import Repair
from ..networks import load_tensors
from ..pruners.compressor import Compressor
from .method_case import Case
from .rules import require
from .toys import global_random


def keeping_all_is_dense(case: Case) -> None:
    """With all units kept nothing changes."""
    whole = case.method.apply(case.context, case.structure.units).model
    case.require_same(whole, case.model, "all units kept, against the dense network")


def masked_is_the_oracle(case: Case) -> None:
    """The smaller network computes what the masked one does."""
    shapes = {name: parameter.shape for name, parameter in case.model.named_parameters()}
    for kept in case.plans:
        small, masked = case.method.apply(case.context, kept).model, case.method.masked(case.context, kept).eval()
        require(not any(module.training for module in small.modules()), "apply's network is not in eval mode")
        same = {name: parameter.shape for name, parameter in masked.named_parameters()} == shapes
        require(same, "the masked network has not the dense network's shapes")
        case.require_same(small, masked, f"kept {kept.tolist()}, apply against masked")


def costs_no_more_than_dense(case: Case) -> None:
    """No plan makes a network that multiplies more."""
    dense = case.counted(case.model)
    for kept in case.plans:
        counted = case.counted(case.method.apply(case.context, kept).model)
        require(
            counted <= dense, f"kept {kept.tolist()}: {counted} multiply-accumulates, the dense network has {dense}"
        )


def says_the_same_twice(case: Case) -> None:
    """Nothing depends on the random numbers of the world."""
    found = []
    for seed in (1, 2):
        with global_random(seed):
            context = case.fresh()
            found.append((case.method.apply(context, case.plans[-1]).model, case.method.curves(context)))
    (one, curves), (other, again) = found
    case.require_same(one, other, "the same plan applied twice")
    same = all(np.array_equal(a, b) for a, b in zip(curves, again, strict=True))
    require(same, "the curves are others the second time: draw from context.seed")


def recipe_makes_it_again(case: Case) -> None:
    """Recipe and tensors are enough to make the network again."""
    for kept in case.plans:
        compressed = case.method.apply(case.context, kept)
        _require_rebuilt(case, compressed.model, compressed.recipe, f"kept {kept.tolist()}, rebuilt from its recipe")
    try:
        case.method.rebuild(copy.deepcopy(case.model), {"of": "no method"})
    except ValueError:
        return
    raise AssertionError("rebuild took a recipe that is not its own: raise ValueError")


REPAIRS = (
    Repair(kind="gram", guard=False),
    Repair(kind="sequential", guard=False),
    Repair(kind="sequential", distill=1, guard=False),
)


def repair_is_finite(case: Case) -> None:
    """Repaired in any way the network gives numbers, has the form that its recipe says, and can be rebuilt."""
    compressor = Compressor(case.context)
    for repair in REPAIRS:
        for kept in case.plans:
            about = f"kept {kept.tolist()}, repaired ({repair.kind}{', distilled' if repair.distill else ''})"
            repaired = compressor(kept, repair)
            require(bool(case.outputs(repaired).isfinite().all()), f"{about}: outputs are not finite")
            compressed = case.method.apply(case.context, kept)
            _require_rebuilt(case, repaired, compressed.recipe, f"{about} and rebuilt")
            if compressed.hold is not None:
                held = copy.deepcopy(repaired)
                compressed.hold(held)
                case.require_same(
                    held, repaired, f"{about}, before and after `hold`: the repair left the method's form"
                )


def _require_rebuilt(case: Case, network: nn.Module, recipe: Mapping[str, object], what: str) -> None:
    """A recipe as JSON, the dense architecture with weights that do not matter, and the saved tensors make it again."""
    told = json.loads(json.dumps(recipe))
    require(told == recipe, f"{what}: the recipe changes on its way through JSON: {recipe}")
    other = copy.deepcopy(case.model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    again = case.method.rebuild(other, told)
    load_tensors(again, {name: tensor.clone() for name, tensor in network.state_dict().items()})
    case.require_same(again.eval(), network, what)
