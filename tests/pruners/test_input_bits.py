"""The bits of inputs, layer by layer: said by pattern, or a choice of the walk beside the bits of the weights."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import zoo
from secateur.agents import SearchProblem, get_allocator
from secateur.configs import ConfigError, load_config
from secateur.configs.schema import BudgetConfig, Config, LayersConfig, Repair
from secateur.networks.inference import logits
from secateur.networks.quantise.affine import Affine
from secateur.pruners.bits import Bits
from secateur.pruners.budget import Budget
from secateur.pruners.compressor import Compressor
from secateur.pruners.context import Context
from secateur.pruners.loss_model import LossModel, loss_curves
from secateur.pruners.method import METHODS
from secateur.pruners.repair import sensitivity as module
from secateur.pruners.repair.statistics import Sampler
from secateur.pruners.structure import Kept, PlanError
from secateur.testing import check_method, toy_context, toy_images, toy_networks

METHOD = Bits()
LIST = [2, 3, 4, 6, 8]


def context(name: str = "residual", asked: Any = LIST, **layers: Any) -> Context:
    model = zoo.make(name)
    config = LayersConfig(activation_bits=asked, **layers)
    return Context(model, METHOD.find(model, zoo.ZOO[name].shape, config), zoo.batches(name))


def mixed(seen: Context, seed: int = 0) -> Kept:
    rng = np.random.default_rng(seed)
    return np.array([int(rng.choice(layer.choices)) for layer in seen.structure.layers])


def test_inputs_are_layers_beside_their_weights() -> None:
    layers = context(asked=[8, 4, 4]).structure.layers
    assert [layer.name for layer in layers[:4]] == [
        "conv1.weight",
        "conv1.inputs",
        "layer1.0.conv1.weight",
        "layer1.0.conv1.inputs",
    ]
    assert {layer.choices for layer in layers[1::2]} == {(4, 8, 32)}
    assert all(inputs.like == tensor.name for tensor, inputs in zip(layers[::2], layers[1::2], strict=True))
    plain = context(asked=None).structure.layers
    assert [layer.name for layer in plain] == [layer.name for layer in layers[::2]]


def test_patterns_say_bits_or_a_choice_and_the_last_counts() -> None:
    seen = context(asked={"*": 8, "layer1.*": [4, 8], "layer1.0.conv2": 3})
    assert [layer.name for layer in seen.structure.layers if layer.like] == ["layer1.0.conv1.inputs"]
    kept = np.full(len(seen.structure.layers), 4)
    inputs = METHOD.apply(seen, kept).recipe["inputs"]
    modules = [layer.consumers[0] for layer in seen.structure.layers if not layer.like]
    assert inputs == {**dict.fromkeys(modules, 8), "layer1.0.conv1": 4, "layer1.0.conv2": 3}


def test_bit_operations_are_macs_times_the_bits_of_both() -> None:
    seen = context(asked=[4, 8])
    structure, kept = seen.structure, mixed(context(asked=[4, 8]))
    plain = METHODS["weights"].find(seen.model, zoo.RGB, LayersConfig())
    macs = {
        layer.name: int(f) * layer.units for f, layer in zip(plain.costs["flops"].factors, plain.layers, strict=True)
    }
    bits = dict(zip((layer.name for layer in structure.layers), kept.tolist(), strict=True))
    expected = 32 * 32 * (zoo.flops_counted(seen.model, zoo.RGB) - sum(macs.values()))
    expected += sum(n * bits[name] * bits[name.replace("weight", "inputs")] for name, n in macs.items())
    assert structure.cost("bops", kept) == expected
    assert structure.cost("bops", structure.units) == 32 * 32 * zoo.flops_counted(seen.model, zoo.RGB)
    weights = [i for i, layer in enumerate(structure.layers) if not layer.like]
    assert structure.cost("size", kept) == context(asked=None).structure.cost("size", kept[weights])


@pytest.mark.parametrize("name", ["residual", "tied", "conv1d", "tokens"])
def test_a_plan_is_what_is_made_saved_and_made_again(name: str) -> None:
    seen = context(name)
    kept = mixed(seen, 1)
    kept[:2] = 32, 3  # inputs alone
    bits = dict(zip((layer.name for layer in seen.structure.layers), kept.tolist(), strict=True))
    compressed = METHOD.apply(seen, kept)
    inputs = {m: bits[layer.name] for layer in seen.structure.layers if layer.like for m in layer.consumers}
    assert compressed.recipe["inputs"] == {module: number for module, number in inputs.items() if number < 32}
    assert torch.equal(compressed.model.get_parameter(seen.structure.layers[0].name), weight_of(seen, 0))
    model = Compressor(seen)(kept, Repair(guard=False))
    assert not torch.equal(model.get_parameter(seen.structure.layers[0].name), weight_of(seen, 0))  # fitted to them
    for module_name, number in compressed.recipe["inputs"].items():
        quantiser = model.get_submodule(module_name).quantiser
        values = quantiser.inputs(torch.randn(2000) * float(quantiser.range.abs().max())).unique()
        assert 2 ** (number - 1) < len(values) <= 2**number
    again = METHOD.rebuild(copy.deepcopy(seen.model), compressed.recipe)
    again.load_state_dict(model.state_dict())
    images = zoo.images(name, 4)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), model(images))


def weight_of(seen: Context, index: int) -> Tensor:
    return seen.model.get_parameter(seen.structure.layers[index].name)


def test_eights_alone_are_the_config_that_says_eight() -> None:
    one, other = context(asked=8), context(asked=[8])
    kept = np.full(len(one.structure.layers), 4)
    both = np.where([bool(layer.like) for layer in other.structure.layers], 8, 4)
    assert one.structure.cost("bops", kept) == other.structure.cost("bops", both)
    made, same = METHOD.apply(one, kept), METHOD.apply(other, both)
    assert made.recipe == same.recipe
    fitted = [Compressor(seen)(plan, Repair(guard=False)) for seen, plan in ((one, kept), (other, both))]
    for left, right in ((made.model, same.model), fitted):
        state = right.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in left.state_dict().items())


def test_what_outputs_lose_is_what_a_plain_forward_loses() -> None:
    """Of every module and number of bits, against the outputs of the module itself on rounded inputs."""
    seen = context()
    images = torch.cat([x for x, _ in seen.calibration])
    for layer, curve in zip(seen.structure.layers, METHOD.curves(seen), strict=True):
        if not layer.like:
            continue
        (name,) = layer.consumers
        dense: Any = seen.model.get_submodule(name)
        pairs: list[tuple[Tensor, Tensor]] = []
        hook = dense.register_forward_hook(lambda _m, args, y, pairs=pairs: pairs.append((args[0], y)))
        with torch.no_grad():
            seen.model(images)
        hook.remove()
        x, y = pairs[0]
        dims = (0,) if isinstance(dense, nn.Linear) else (0, 2, 3)
        for bits, lost in zip(layer.choices[:-1], curve[:-1], strict=True):
            kept = seen.structure.units.copy()
            kept[seen.structure.index(layer.name)] = bits
            quantiser: Any = METHOD.apply(seen, kept).model.get_submodule(name).quantiser
            grid = Affine.of(*quantiser.range, bits)
            rounded = ((x / grid.scale).round() + grid.zero).clamp(0, 2**bits - 1)
            with torch.no_grad():
                missed = dense((rounded - grid.zero) * grid.scale) - y
            expected = float(missed.double().var(dims, correction=0).sum() / y.double().var(dims, correction=0).sum())
            assert lost <= expected * (1 + 1e-3)  # never more than with fewer bits
            assert lost == pytest.approx(min(expected, 1.0), rel=1e-3) or lost in curve[: layer.choices.index(bits)]


def test_predicted_losses_order_what_is_measured() -> None:
    """The distance of the answers where one tensor's inputs alone are rounded, by a plain forward pass."""
    seen = context("vgg", asked=[2, 3, 4, 6])
    images = list(seen.calibration)
    dense = logits(seen.model, images)
    predicted, measured = [], []
    for index, (layer, curve) in enumerate(zip(seen.structure.layers, loss_curves(seen), strict=True)):
        for bits, loss in zip(layer.choices[:-1], curve[:-1], strict=True) if layer.like else ():
            kept = seen.structure.units.copy()
            kept[index] = bits
            found = logits(Compressor(seen)(kept, Repair(guard=False)), images)
            measured.append(float((found - dense).square().sum(1).mean() / dense.var(0).sum()))
            predicted.append(float(loss))
    assert spearmanr(predicted, measured).statistic > 0.9
    assert 1 / 3 < np.median(np.array(predicted) / np.array(measured)) < 3


def test_sensitivities_are_those_of_the_weights_and_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, measure, cut = context(), module._cut_alone, []
    monkeypatch.setattr(module, "_cut_alone", lambda c, i, *rest: cut.append(i) or measure(c, i, *rest))
    found = module.layer_sensitivity(seen)
    assert np.array_equal(found[::2], found[1::2])
    assert cut == list(range(0, len(found), 2))
    joint = toy_context("channels+bits", "plain", config=LayersConfig(activation_bits=[4, 8])).structure
    assert [layer.like for layer in joint.layers[:4]] == ["", "", "0.0.weight.bits", ""]


def test_a_fit_sees_the_inputs_that_are_multiplied() -> None:
    seen = context("vgg", asked=[2, 8])
    kept = np.where([bool(layer.like) for layer in seen.structure.layers], 2, 32)
    bare, fitted = (Compressor(seen)(kept, Repair(kind=kind, guard=False)) for kind in ("none", "sequential"))
    distance = Compressor(seen)._distances(64)
    assert distance(fitted) < 0.8 * distance(bare)
    name = seen.structure.layers[2].consumers[0]
    rounded = Sampler(fitted.get_submodule(name)).inputs(torch.randn(4, *weight_of(seen, 2).shape[1:2], 8, 8))
    assert len(rounded.unique()) <= 4


@pytest.mark.parametrize("name", ["uniform", "knapsack", "shallow", "lamp", "threshold"])
def test_rules_spend_bit_operations_on_both(name: str) -> None:
    seen = context("vgg", asked=[2, 4, 8])
    structure = seen.structure
    fours = structure.fraction("bops", np.full(len(structure.layers), 4))
    budget = Budget(structure, "bops", fours, METHOD.max_sparsity)
    kept = get_allocator(name, "bits").allocate(SearchProblem(budget, seen))
    assert budget.cost(kept) <= budget.limit
    assert all(int(bits) in layer.choices for bits, layer in zip(kept, structure.layers, strict=True))
    if name == "uniform":
        assert kept.tolist() == [4] * len(kept)
    if name == "knapsack":
        losses = LossModel.of(seen)
        assert losses.predict(kept) < losses.predict(np.full(len(kept), 4))


def test_bytes_do_not_ask_for_rounded_inputs() -> None:
    seen = context(asked=[4, 8])
    budget = Budget(seen.structure, "size", 0.2, METHOD.max_sparsity)
    kept = get_allocator("knapsack", "bits").allocate(SearchProblem(budget, seen))
    assert set(kept[1::2].tolist()) == {32}


def test_inputs_are_ignored_rounded_to_and_bounded_by_name() -> None:
    seen = context(asked=[4, 6, 8], ignore=["layer1.*.inputs", "layer2.0.conv1"], round_to={"*.inputs": 4})
    names = [layer.name for layer in seen.structure.layers]
    assert "layer1.0.conv1.weight" in names
    assert "layer2.0.conv1.inputs" not in names
    assert seen.structure.ignored["layer1.0.conv1.inputs"] == "excluded by the config"
    assert {layer.choices for layer in seen.structure.layers if layer.like} == {(4, 8, 32)}
    budget = Budget(seen.structure, "bops", 1.0, METHOD.max_sparsity, {"*.inputs": (0.75, 0.9)})
    assert {int(n) for n, layer in zip(budget.most, seen.structure.layers, strict=True) if layer.like} == {8}
    volumes = context("conv3d")
    assert "inputs of a Conv3d are not rounded" in volumes.structure.ignored.values()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("1", r"layers\.activation_bits = 1: input should be greater than or equal to 2"),
        ("[]", r"layers\.activation_bits = \[\]: list should have at least 1 item"),
        ("[4, 1]", r"layers\.activation_bits\.1 = 1: input should be greater than or equal to 2"),
        ("[17]", r"layers\.activation_bits\.0 = 17: input should be less than or equal to 16"),
        ("{conv1: 1}", r"layers\.activation_bits\.conv1 = 1: input should be greater than or equal to 2"),
        ("true", "layers.activation_bits: true is no number"),
    ],
)
def test_bits_that_are_none_are_refused_by_the_config(asked: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("digits", [f"layers.activation_bits={asked}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "bits"),
    [
        (["method=bits", "budget.bops=0.1"], 8),
        (["method=[channels, bits]", "budget.bops=0.1"], 8),
        (["method=channels+bits", "budget.bops=0.1", "budget.size=0.1"], 8),
        (["method=bits", "budget.size=0.1"], None),  # bytes are of weights alone
        (["method=bits", "budget.bops=0.1", "layers.activation_bits=null"], None),  # floats, and said so
        (["method=bits", "budget.bops=0.1", "layers.activation_bits=4"], 4),
        (["method=channels", "budget.bops=0.1"], None),
    ],
)
def test_inputs_have_eight_bits_where_bit_operations_are_budgeted(overrides: list[str], bits: int | None) -> None:
    config = load_config("digits", overrides)
    assert config.layers.activation_bits == bits
    assert load_config(config).layers.activation_bits == bits  # what was said once stays


def test_sections_made_in_python_say_as_much() -> None:
    given = {"name": "mine", "method": "bits", "budget": BudgetConfig(bops=0.1)}
    assert Config(**given).layers.activation_bits == 8
    assert Config(**given, layers=LayersConfig(cut="all")).layers == LayersConfig(cut="all", activation_bits=8)
    assert Config(**given, layers=LayersConfig(activation_bits=None)).layers.activation_bits is None


def test_a_session_keeps_its_inputs_on_another_budget() -> None:
    config = load_config("digits", ["method=bits", "budget.size=0.1"])
    assert load_config(config, ["budget.bops=0.1"]).layers.activation_bits is None


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"asked": {"conv9": 4}}, "layers.activation_bits names 'conv9', which is no module of a layer here"),
        ({"ignore": ["conv1.input"]}, "layers.ignore names 'conv1.input', which is no layer here"),
        ({"ignore": ["conv9.inputs"]}, "layers.ignore names 'conv9.inputs', which is no layer here"),
    ],
)
def test_names_that_are_none_are_refused(layers: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        context(**layers)


def test_inputs_of_one_bit_and_lists_for_other_methods_are_refused() -> None:
    seen = context()
    kept = seen.structure.units.copy()
    kept[1] = 1
    with pytest.raises(PlanError, match=r"layer conv1\.inputs: 1 bits: a grid has 2 or more; 32 leave it as it is"):
        Compressor(seen).compress(kept)
    for method in ("channels", "weights", "lowrank"):
        with pytest.raises(PlanError, match=rf"layers\.activation_bits is for method: bits; .* {method}"):
            METHODS[method].find(zoo.make("vgg"), zoo.RGB, LayersConfig(activation_bits=[4]))


def test_channels_and_both_bits_cost_what_they_multiply() -> None:
    model = toy_networks()["plain"]
    structure = METHODS["channels+bits"].find(model, (3, 8, 8), LayersConfig(activation_bits=[4, 8]))
    names = [layer.name for layer in structure.layers]
    kept = structure.units.copy()
    for name, count in (("0.0.channels", 4), ("0.0.weight.bits", 3), ("1.0.weight.bits", 6), ("1.0.inputs.bits", 4)):
        kept[names.index(name)] = count
    first, second = 3 * 4 * 9 * 64, 4 * 12 * 9 * 16
    rest = 12 * 5
    assert structure.cost("bops", kept) == first * 3 * 32 + second * 6 * 4 + rest * 32 * 32
    made = METHODS["channels+bits"].apply(Context(model, structure, toy_images(model)), kept)
    assert made.recipe["then"]["inputs"] == {"1.0": 4}
    assert made.model.get_submodule("1.0").weight.shape[1] == 4


@pytest.mark.slow
@pytest.mark.parametrize("asked", [[4, 8], {"*": 8, "0*": [2, 6]}])
@pytest.mark.parametrize("method", ["bits", "channels+bits"])
def test_all_rules_are_kept(method: str, asked: Any) -> None:
    check_method(method, config=LayersConfig(activation_bits=asked))
