"""Two methods as one: layers, costs and names; every network that a plan makes costs what the plan says."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from secateur.configs import Config
from secateur.configs.schema import LayersConfig, Repair
from secateur.networks.factors import Factorised
from secateur.pruners import METHODS, Budget, Compressor, Layer, LossModel, PlanError, Structure
from secateur.pruners.costs.counts import LinearCost
from secateur.pruners.costs.measures import Measures
from secateur.pruners.costs.ranks import RankCost, TwoLayers
from secateur.pruners.loss_model import best_steps, in_turn
from secateur.testing import check_method, toy_context, toy_images, toy_networks
from secateur.testing.method_case import Case


def plans(structure: Structure, count: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.array([rng.choice(layer.choices) for layer in structure.layers]) for _ in range(count)]


@pytest.mark.slow
def test_two_methods_keep_the_rules_of_one():
    model = toy_networks()["biases"]
    check_method("channels+bits", model, toy_images(model))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["channels+bits", "bits+channels", "channels+lowrank", "lowrank+channels"])
def test_all_pairs_do_on_all_toys(name: str):
    check_method(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("channels+bits", {"activation_bits": 8}),
        ("channels+bits", {"grid": "shared"}),
        ("channels+bits", {"cut": "all"}),
        ("channels+bits", {"cut": "sampled", "round_to": {"*.channels": 2}}),
        ("channels+lowrank", {"factors": "spatial"}),
    ],
)
def test_and_with_what_the_user_says(name: str, config: dict):
    check_method(name, config=LayersConfig.model_validate(config))


def stored(model: nn.Module) -> int:
    """Bytes of codes, of scales and of everything else, of the network itself."""
    total = 0
    for name, parameter in model.named_parameters():
        owner, _, own = name.rpartition(".")
        scale = dict(model.get_submodule(owner).named_buffers()).get(f"{own}_scale")
        whole = 4 * parameter.numel()
        if scale is None:
            total += whole
            continue
        codes = (parameter / scale.reshape(-1, *[1] * (parameter.dim() - 1))).round()
        bits = next(b for b in (2, 3, 4, 6, 8) if codes.min() >= -(2 ** (b - 1)) and codes.max() < 2 ** (b - 1))
        total += min(whole, -(-parameter.numel() * bits // 8) + 4 * len(scale))
    return total


@pytest.mark.parametrize("network", ["residual", "depthwise"])
def test_bytes_are_those_of_the_network_that_is_made(network: str):
    context = toy_context("channels+bits", network)
    for kept in plans(context.structure):
        assert stored(context.method.apply(context, kept).model) <= context.structure.cost("size", kept)
    kept = context.structure.units.copy()
    for i, layer in enumerate(context.structure.layers):
        kept[i] = 2 if layer.name.endswith(".bits") else layer.units // 2
    assert stored(context.method.apply(context, kept).model) == context.structure.cost("size", kept)


def test_operations_and_parameters_are_those_of_the_network_that_is_made():
    case = Case(METHODS["channels+lowrank"], *_toy("plain"), LayersConfig(), 0)
    ones = 0
    for kept in plans(case.structure, 12):
        model = case.method.apply(case.context, kept).model
        assert case.counted(model) == case.structure.cost("flops", kept)
        assert sum(parameter.numel() for parameter in model.parameters()) == case.structure.cost("params", kept)
        twos = sum(isinstance(module, Factorised) for module in model.modules())
        ones += sum(
            layer.name.endswith(".lowrank") and n < layer.units
            for layer, n in zip(case.structure.layers, kept, strict=True)
        )
        ones -= twos
    assert ones > 0, "no layer that got small was one again"


def _toy(name: str) -> tuple[nn.Module, list]:
    model = toy_networks()[name]
    return model, toy_images(model)


def test_each_tensor_has_its_choices_one_after_the_other():
    names = [layer.name for layer in toy_context("bits+channels", "plain").structure.layers]
    assert names[:4] == ["0.0.channels", "0.0.weight.bits", "1.0.channels", "1.0.weight.bits"]
    layers = toy_context("channels+bits", "plain").structure.layers
    assert [layer.max_sparsity for layer in layers[:2]] == [0.9, 0.95]


def test_a_name_may_be_for_one_of_the_methods_alone():
    model = toy_networks()["plain"]
    method = METHODS["channels+bits"]
    config = LayersConfig(ignore=["0.0.weight.bits", "1.0.channels"], round_to={"*.channels": 4, "*": 1})
    found = method.find(model, (3, 8, 8), config)
    assert "0.0.channels" in {layer.name for layer in found.layers}
    assert {"0.0.weight.bits", "1.0.channels"} <= set(found.ignored)
    assert "1.0.weight.bits" in {layer.name for layer in found.layers}
    config = LayersConfig(round_to={"*.channels": 4}, activation_bits=8, max_sparsity=0.97)
    found = method.find(model, (3, 8, 8), config)
    assert found.layers[0].choices == (4, 8)
    assert found.layers[1].choices == (2, 3, 4, 6, 8, 32)
    assert Budget(found, "size", 1.0, 0.97).least.tolist()[:2] == [4, 2]
    with pytest.raises(PlanError, match="pattern is not for method: bits"):
        method.find(model, (3, 8, 8), LayersConfig(pattern="2:4"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("channels+channels", "has channels twice: name it once"),
        ("weights+bits", "cannot be one search, which has channels, and bits or lowrank: search with one, apply"),
        ("channels+bits+lowrank", "cannot be one search"),
        ("channels+bit", "no method 'bit', only .* did you mean bits"),
        ("channels+", "no method ''"),
    ],
)
def test_what_cannot_be_one_is_refused_in_a_line(given: str, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        _ = METHODS[given]
    assert "\n" not in str(caught.value)


def test_a_list_of_names_is_one_name():
    config = Config.model_validate(
        {"name": "x", "method": ["channels", "bits"], "criterion": ["l1", "nearest"], "budget": {"size": 0.1}}
    )
    assert (config.method, config.criterion) == ("channels+bits", "l1+nearest")
    method = METHODS[config.method]
    assert method is METHODS["channels+bits"]
    assert "channels+bits" in METHODS
    assert "channels+bit" not in METHODS
    method.check_criterion("l1+nearest")
    with pytest.raises(ValueError, match=r"has one of each: \[obs, gptq\]"):
        method.check_criterion("l1")
    with pytest.raises(ValueError, match="no criterion of bits 'l1'"):
        method.check_criterion("l1+l1")
    for odd in ([], ["channels", 3]):
        with pytest.raises(ValueError, match="is no list of names"):
            Config.model_validate({"name": "x", "method": odd, "budget": {"size": 0.1}})


def test_a_structure_goes_to_other_processes():
    structure = toy_context("channels+bits", "residual").structure
    again = pickle.loads(pickle.dumps(structure))
    for kept in plans(structure):
        assert again.fractions(kept) == structure.fractions(kept)


def test_repaired_weights_lie_on_the_grids_of_the_smaller_network():
    context = toy_context("channels+bits", "residual")
    kept = plans(context.structure, 1)[0]
    model = Compressor(context)(kept, Repair(guard=False))
    assert stored(model) <= context.structure.cost("size", kept)


class Products:
    """Σ of two layers' product, each pair its own."""

    def __init__(self, weights: np.ndarray):
        self.weights = weights

    def __call__(self, kept):
        return (kept[..., ::2] * kept[..., 1::2] * self.weights).sum(axis=-1)


def products(rng: np.random.Generator) -> tuple[LossModel, Budget]:
    """Three tensors of channels, of which few cost little, and bits, of which a few cost nothing."""
    channels, bits = tuple(range(1, 9)), (2, 4, 8, 32)
    layers = [Layer(str(i), 32 if i % 2 else 8, bits if i % 2 else channels) for i in range(6)]
    costs = {"flops": Products(rng.uniform(1.0, 5.0, 3))}
    structure = Structure("toy", tuple(layers), costs, {}, {}, (1,), in_turn=True)
    shapes = [4.0 ** -(layer.levels - 2) if i % 2 else (1 - layer.levels / 8) ** 2 for i, layer in enumerate(layers)]
    curves = [rng.uniform(0.1, 1.0) * shape * (shape > 1e-9) for shape in shapes]
    return LossModel.from_curves(structure, curves), Budget(structure, "flops", rng.uniform(0.04, 0.2), 0.95)


def test_of_costs_that_multiply_steps_count_when_their_turn_comes():
    rng = np.random.default_rng(0)
    ahead = 0
    for _ in range(8):
        losses, budget = products(rng)
        every = np.array(list(itertools.product(*(layer.choices for layer in budget.structure.layers))))
        fits = every[budget.structure.costs["flops"](every) <= budget.limit]
        least = float(losses.predict(fits).min())
        assert float(losses.predict(best_steps(budget, losses.gains(budget)))) <= 1.01 * least
        alone = replace(losses, structure=replace(losses.structure, in_turn=False))
        ahead += float(losses.predict(best_steps(budget, alone.gains(budget)))) > 1.05 * least
    assert ahead >= 3, "counted of the dense network, steps find the same plans"


def test_of_costs_that_add_up_nothing_changes():
    rng = np.random.default_rng(0)
    layers = tuple(Layer(f"{i}", 8) for i in range(5))
    structure = Structure("toy", layers, {"flops": LinearCost(rng.integers(1, 9, 5), 7)}, {}, {}, (1,))
    gains = [np.sort(rng.uniform(size=7))[::-1] for _ in layers]
    for found, gain in zip(in_turn(Budget(structure, "flops", 0.5), gains), gains, strict=True):
        np.testing.assert_allclose(found, gain)


def test_ranks_of_a_smaller_layer_count_as_they_are_made():
    two = TwoLayers(9, 1, 16, 16)
    dense = Measures.of([(8, 4, 3, 3)], 16 * 288, 288)
    cost = RankCost([two], [two.most((8, 4, 3, 3))], dense, "params")
    smaller = Measures.of([(4, 2, 3, 3)], 16 * 72, 72)
    assert cost(np.array([3]), smaller) == 3 * (18 + 4)
    assert cost(np.array([4]), smaller) == 72
    assert cost(np.array([4])) == 4 * (36 + 8)
