"""Residual branches that go altogether: against the masked network, torch's counters, and means taken by hand."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoo
from secateur.configs import LatencyConfig
from secateur.configs.schema import LayersConfig, Repair
from secateur.networks.constant import Constant
from secateur.networks.fused import Fused
from secateur.pruners.budget import Budget
from secateur.pruners.channels.method import cut as cut_channels
from secateur.pruners.channels.shrink import first_units, mask, shrink
from secateur.pruners.channels.slices import ChannelStructure, Selection
from secateur.pruners.compressor import Compressor
from secateur.pruners.context import Context
from secateur.pruners.costs.latency_profile import take_table
from secateur.pruners.loss_model import LossModel
from secateur.pruners.method import METHODS
from secateur.pruners.plan import RatioPlan
from secateur.pruners.structure import Kept, PlanError
from secateur.runtimes import RUNTIMES, Program
from secateur.testing import check_method

BRANCHES = {  # network → of each branch its inner layers
    "residual": [["layer1.0.conv1"], ["layer2.0.conv1"], ["layer3.0.conv1"]],
    "downsample": [["block1.conv1"], ["block2.conv1"]],  # written in place, by modules that are called three times
    "bottleneck": [["1.conv1", "1.conv2"]],
    "preactivation": [["conv1"]],  # no batch norm at the end, and no bias
    "inverted": [["2.conv.0.0"]],
    "transformer": [["mlp.0"]],
}
CASES = pytest.mark.parametrize(("name", "cut"), [(name, cut) for name in BRANCHES for cut in ("inner", "all")])
ONE = LatencyConfig(batch=1, repeats=1)
CONFIG = LayersConfig(branches=True)


@functools.cache
def structure(name: str, cut: str = "inner") -> ChannelStructure:
    config = CONFIG.model_copy(update={"cut": cut})
    found = METHODS["channels"].find(zoo.make(name), zoo.ZOO[name].shape, config)
    assert isinstance(found, ChannelStructure)
    return found


def context(name: str, cut: str = "inner") -> Context:
    return Context(zoo.make(name), structure(name, cut), zoo.batches(name))


def drawn(layers: ChannelStructure, seed: int) -> Kept:
    """Of every layer one of its choices; the first of all plans keeps the least of each, so that every branch goes."""
    rng = np.random.default_rng(seed)
    kept = [rng.choice(layer.choices) if seed else layer.choices[0] for layer in layers.layers]
    return np.array(kept, dtype=np.int64)


def selected(layers: ChannelStructure, kept: Kept, seed: int) -> Selection:
    rng = np.random.default_rng(seed)
    counts = zip(layers.layers, layers.settled(kept), strict=True)
    return [np.sort(rng.choice(layer.units, count, replace=False)) for layer, count in counts]


def without(layers: ChannelStructure, *names: str) -> Kept:
    """All units of every layer, but 0 of some."""
    return np.array([0 if layer.name in names else layer.units for layer in layers.layers], dtype=np.int64)


def output(model: nn.Module, name: str, x: Tensor) -> Tensor:
    """What a module says."""
    seen: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(lambda _m, _i, out: seen.append(out.clone()))
    with torch.no_grad():
        model(x)
    hook.remove()
    return seen[0]


@CASES
def test_masked_and_shrunk_networks_agree_and_cost_what_is_said(name: str, cut: str) -> None:
    layers, model, x = structure(name, cut), zoo.make(name, 1), zoo.images(name, 3)
    assert [list(branch.layers) for branch in layers.branches] == BRANCHES[name]
    generator = torch.Generator().manual_seed(0)
    means = {
        branch.exit: torch.randn(len(model.get_parameter(f"{branch.exit}.weight")), generator=generator)
        for branch in layers.branches
    }
    for seed in range(4):
        kept = drawn(layers, seed)
        selection = selected(layers, kept, seed)
        small = shrink(model, layers, selection, means)
        assert any(isinstance(module, Constant) for module in small.modules()) == bool(layers.gone(kept))
        with torch.no_grad():
            torch.testing.assert_close(small(x), mask(model, layers, selection, means)(x), rtol=1e-4, atol=1e-4)
        assert layers.cost("flops", kept) == zoo.flops_counted(small, zoo.ZOO[name].shape)
        assert layers.cost("params", kept) == sum(p.numel() for p in small.parameters())


QUICK = [("downsample", "all"), ("bottleneck", "inner")]
TIMED = [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
    for case in [*QUICK, ("residual", "all"), ("preactivation", "inner"), ("inverted", "all"), ("transformer", "inner")]
]


@pytest.mark.parametrize(("name", "cut"), TIMED)
def test_a_latency_table_is_that_of_the_shrunk_network_and_no_cost_falls(name: str, cut: str, monkeypatch, tmp_path):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    layers, model, timer = structure(name, cut), zoo.make(name), zoo.timer(zoo.multiplications)
    costs = {**layers.costs, "latency": take_table(model, layers, ONE, timer=timer)}
    for seed in range(4):
        kept = drawn(layers, seed)
        small = first_units(model, layers, layers.settled(kept))
        assert costs["latency"](kept) == pytest.approx(1e9 * sum(timer(small, zoo.images(name, 1))), abs=1.0)
        for index, layer in enumerate(layers.layers):
            walk = np.tile(kept, (2 * layer.units + 1, 1)).astype(np.float64)
            walk[:, index] = np.linspace(0, layer.units, len(walk))
            assert all((np.diff(cost(walk)) >= -1e-6).all() for cost in costs.values())


@pytest.mark.parametrize("name", ["residual", "preactivation", "transformer"])
def test_its_mean_output_over_the_calibration_images_takes_its_place(name: str) -> None:
    seen = context(name)
    branch = seen.structure.branches[-1]
    kept = without(seen.structure, branch.layers[0])
    images = torch.cat([images for images, _ in seen.calibration])
    said = output(seen.model, branch.norm or branch.exit, images)
    by_channel = said.movedim(-1 if name == "transformer" else 1, -1).flatten(0, -2)
    small = seen.method.apply(seen, kept)
    with torch.no_grad():
        torch.testing.assert_close(
            small.model.get_parameter(f"{branch.exit}.mean"), by_channel.mean(0), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(small.model(images), seen.method.masked(seen, kept)(images), rtol=1e-4, atol=1e-4)
    assert small.cut == frozenset()  # nothing is left to be fitted but the constant


def test_one_inner_layer_takes_the_others_with_it():
    seen = context("bottleneck")
    gone = [seen.method.apply(seen, without(seen.structure, *names)) for names in (["1.conv1"], ["1.conv1", "1.conv2"])]
    assert gone[0].recipe == gone[1].recipe
    assert seen.structure.settled(without(seen.structure, "1.conv2")).tolist() == [8, 0, 0]
    fractions = [seen.structure.fraction("params", without(seen.structure, name)) for name in ("1.conv1", "1.conv2")]
    assert fractions[0] == fractions[1]


@pytest.mark.parametrize(("name", "cut"), [("residual", "inner"), ("residual", "all"), ("downsample", "inner")])
def test_what_is_added_makes_up_for_the_drift_of_the_sum(name: str, cut: str) -> None:
    """The mean of the sum is the dense one, as least squares would have it of a constant."""
    seen = context(name, cut)
    branch = seen.structure.branches[-1]
    kept = np.where(seen.structure.units > 4, seen.structure.units - 2, seen.structure.units)
    kept[seen.structure.index(branch.layers[0])] = 0
    compressed = seen.method.apply(seen, kept)
    zoo.repair_sequentially(compressed, seen.model, seen.calibration)
    images = torch.cat([images for images, _ in seen.calibration])
    other = f"{branch.exit.rpartition('.')[0]}.{'shortcut' if name == 'residual' else 'downsample'}"
    sums = [
        (output(net, branch.norm or "", images) + output(net, other, images)).mean((0, 2, 3))
        for net in (seen.model, compressed.model)
    ]
    rows = compressed.rows.get(branch.norm or "", np.arange(len(sums[0])))
    torch.testing.assert_close(sums[1], sums[0][rows], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["none", "gram", "sequential"])
def test_every_repair_takes_it(kind: str) -> None:
    compressor = Compressor(context("residual"))
    kept = np.array([2, 0, 4])
    x = zoo.images("residual", 50, 3)
    plain, repaired = (compressor(kept, Repair(kind=k, refit=True, adaptive_bn=0, guard=False)) for k in ("none", kind))
    with torch.no_grad():
        left, before = ((net(x) - compressor.dense(x)).square().sum() for net in (repaired, plain))
        torch.testing.assert_close(Fused(compressor.dense, x[:1])(repaired)(x), repaired(x), rtol=1e-4, atol=1e-4)
    assert left.isfinite()
    assert kind != "sequential" or left < 0.9 * before  # the dense network's moments, of `gram`, say nothing of drift


@pytest.mark.parametrize("cut", ["inner", "all"])
def test_a_recipe_makes_the_same_network_and_it_can_be_cut_further(cut: str) -> None:
    seen = context("downsample", cut)
    small = seen.method.apply(seen, seen.structure.units // 2 * (without(seen.structure, "block1.conv1") > 0))
    again = seen.method.rebuild(zoo.make("downsample", 5), small.recipe)
    again.load_state_dict(small.model.state_dict())
    zoo.assert_same_network(again.eval(), small.model, zoo.images("downsample", 3))
    further = seen.method.find(small.model, zoo.RGB, CONFIG.model_copy(update={"cut": cut}))
    assert [list(branch.layers) for branch in further.branches] == [["block2.conv1"]]
    found = {layer.name for layer in further.layers}
    assert found >= {layer.name for layer in seen.structure.layers} - {"block1.conv1"}
    assert "block1.conv1" not in found


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ({"exit": "no.such", "norm": None, "inside": []}, "no layer 'no.such' of a branch"),
        ({"exit": "stem.1", "norm": None, "inside": []}, "no layer 'stem.1' of a branch"),
        ({"exit": "block1.conv2", "norm": "head.2", "inside": []}, "no layer 'head.2' of a branch"),
    ],
)
def test_a_recipe_of_another_network_is_refused(gone, message):
    with pytest.raises(ValueError, match=message):
        METHODS["channels"].rebuild(zoo.make("downsample"), {"kept": [], "gone": [gone]})


def test_choices_and_budgets():
    layers = METHODS["channels"].find(zoo.make("digits"), (1, 8, 8), CONFIG.model_copy(update={"max_sparsity": 0.5}))
    assert layers.layers[0].choices == (0, *range(8, 17))
    assert Budget(layers, "flops", 0.5, max_sparsity=0.5).least.tolist() == [0] * 6
    kept = Budget(layers, "flops", 0.5, max_sparsity=0.5, bounds={"layer1.*": (0.0, 0.25)}).least
    assert kept.tolist() == [12, 12, 0, 0, 0, 0]
    allowed = Budget(layers, "flops", 0.5, max_sparsity=0.5, bounds={"*": (0.25, 1.0)})
    assert (allowed.least.tolist(), allowed.most.tolist()) == ([0] * 6, [12, 12, 24, 24, 48, 48])
    tiny = Budget(layers, "flops", 0.1, max_sparsity=0.5)
    assert 0.0 < layers.fraction("flops", tiny.fill(layers.units.astype(float))) <= 0.1


def test_a_plan_says_so_and_is_refused_where_no_branch_may_go(tmp_path):
    layers = structure("residual")
    plan = RatioPlan.make(
        layers,
        without(layers, "layer2.0.conv1"),
        architecture="residual",
        criterion="obs",
        budget=("flops", 0.9),
        figures={},
        allocator="knapsack",
        seed=0,
        candidates=0,
    )
    plan.save(tmp_path / "plan.json")
    again = RatioPlan.load(tmp_path / "plan.json")
    assert again.sparsities == {"layer1.0.conv1": 0.0, "layer2.0.conv1": 1.0, "layer3.0.conv1": 0.0}
    again.check(layers)
    with pytest.raises(PlanError, match=r"layer2.0.conv1: 0 units kept is outside 1 … 6; with layers.branches=true"):
        again.check(zoo.structure("residual"))


def test_nothing_is_predicted_to_lose_less_than_the_whole_branch():
    seen = context("residual")
    losses = LossModel.of(seen)
    for index, branch in enumerate(seen.structure.branches):
        assert losses.curves[index][0] >= losses.curves[index][1] > 0.0
        assert losses.predict(without(seen.structure, *branch.layers)) == pytest.approx(losses.curves[index][0])


def test_where_no_branch_can_go_it_is_said():
    with pytest.raises(PlanError, match=r"layers\.branches: no residual branch of this network can go"):
        METHODS["channels"].find(zoo.make("vgg"), zoo.RGB, CONFIG)


@pytest.mark.parametrize("method", ["weights", "lowrank", "bits"])
def test_other_methods_say_that_they_have_none(method):
    with pytest.raises(PlanError, match=rf"layers\.branches is for method: channels; leave it out with .*{method}"):
        METHODS[method].find(zoo.make("vgg"), zoo.RGB, CONFIG)


class TwoBranches(nn.Module):
    """A sum of two branches, without which nothing of the image would be left."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = zoo.conv_bn(3, 6), zoo.Head(6)
        self.one = nn.Sequential(zoo.conv_bn(6, 4), zoo.conv_bn(4, 6))
        self.two = nn.Sequential(zoo.conv_bn(6, 4), zoo.conv_bn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.one(x) + self.two(x))


class Shaken(TwoBranches):
    """The same beside a shortcut: both may go."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.one(x) + self.two(x))


def test_of_a_sum_of_two_branches_neither_goes():
    with pytest.raises(PlanError, match="no residual branch"):
        METHODS["channels"].find(TwoBranches(), zoo.RGB, CONFIG)
    torch.manual_seed(0)
    layers = METHODS["channels"].find(Shaken(), zoo.RGB, CONFIG)
    assert [layer.name for layer in layers.layers if layer.choices[0] == 0] == ["one.0.0", "two.0.0"]


def test_off_nothing_changes():
    plain, able = zoo.structure("residual"), structure("residual")
    assert plain.branches == ()
    assert plain.fingerprint == able.fingerprint
    kept = np.array([[2, 3, 4], [4, 6, 8], [1, 1, 1]])
    for kind in ("flops", "params"):
        assert np.array_equal(plain.costs[kind](kept), able.costs[kind](kept))
    assert replace(able, branches=()).gone(without(able, "layer1.0.conv1")) == []


def test_cut_channels_names_what_of_the_constant_is_left():
    layers, model = structure("residual", "all"), zoo.make("residual")
    kept = drawn(layers, 0)
    compressed = cut_channels(model, layers, selected(layers, kept, 0))
    assert compressed.cut.isdisjoint(name for branch in layers.branches for name in branch.modules)
    assert len(compressed.rows["layer2.0.bn2"]) == kept[layers.index("layer2.0.conv2")]


@pytest.mark.parametrize(
    "runtime", [name if name == "eager" else pytest.param(name, marks=pytest.mark.slow) for name in RUNTIMES]
)
def test_a_file_of_a_network_without_a_branch(runtime: str, tmp_path) -> None:
    """The branch is written in place in `downsample`, out of place in `preactivation`."""
    for package in RUNTIMES[runtime].packages:
        pytest.importorskip(package)
    for name in ("downsample", "preactivation"):
        layers = structure(name)
        small = shrink(zoo.make(name), layers, selected(layers, drawn(layers, 0), 0))
        path = tmp_path / f"{name}{RUNTIMES[runtime].suffix}"
        program = Program.of(small, zoo.images(name, 2))
        RUNTIMES[runtime].export(program, path, {})
        for count in (1, 3):
            x = zoo.images(name, count, count)
            with torch.no_grad():
                torch.testing.assert_close(
                    program.outputs_of(RUNTIMES[runtime].open(path, 1)([x])), small(x), rtol=1e-4, atol=1e-5
                )


@pytest.mark.parametrize("name", BRANCHES)
def test_in_a_file_nothing_is_filled_only_to_be_added(name: str) -> None:
    """Its numbers by channel are added as they are, also where the forward adds in place, and alters no input."""
    layers = structure(name)
    small = shrink(zoo.make(name), layers, selected(layers, drawn(layers, 0), 0)).eval()
    exported = Program.of(small, zoo.images(name, 2)).exported
    called = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert not any("clone" in target for target in called)
    x = zoo.images(name, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x), small(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "cut"), [("bottleneck", "all"), pytest.param("transformer", "inner", marks=pytest.mark.slow)]
)
def test_every_rule_of_a_method_holds(name: str, cut: str) -> None:
    config = CONFIG.model_copy(update={"cut": cut})
    check_method("channels", zoo.make(name).eval(), zoo.batches(name), config=config)
