"""The layers of every kind of network: found, named, in order; what is left whole says why."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from secateur.pruners.channels.coupling import find_layers
from secateur.pruners.channels.slices import ChannelStructure
from secateur.pruners.costs.counts import count_operations
from secateur.pruners.structure import PlanError

CASES = pytest.mark.parametrize(("name", "cut"), zoo.cases())
EVERY = pytest.mark.parametrize("name", zoo.ZOO)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything about a network that a look at it must not change."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            name: (len(module._forward_hooks), len(module._forward_pre_hooks)) for name, module in model.named_modules()
        },
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
    }


def assert_same_state(model: nn.Module, before: dict[str, Any]) -> None:
    after = state_of(model)
    for kind in ("tensors", "grads"):
        assert after[kind].keys() == before[kind].keys()
        for name, tensor in after[kind].items():
            expected = before[kind][name]
            assert tensor is expected is None or torch.equal(tensor, expected), f"{kind} {name} changed"
    for kind in ("requires_grad", "training", "hooks", "attributes"):
        assert after[kind] == before[kind]


@CASES
def test_layers_are_the_expected_ones(name: str, cut: str) -> None:
    toy, structure = zoo.ZOO[name], zoo.structure(name, cut)
    assert {layer.name: layer.units for layer in structure.layers} == toy.layers(cut)
    assert {layer.name for layer in structure.layers if layer.trunk} == (set(toy.trunk) if cut == "all" else set())
    assert structure.units.tolist() == [layer.units for layer in structure.layers]


@CASES
def test_what_is_left_whole_is_named_with_a_reason(name: str, cut: str) -> None:
    toy, structure = zoo.ZOO[name], zoo.structure(name, cut)
    for layer, reason in toy.whole.items():
        assert reason in structure.ignored[layer]
    for layer in toy.trunk if cut == "inner" else ():
        assert "residual trunk" in structure.ignored[layer]
    assert not set(structure.ignored) & {layer.name for layer in structure.layers}


@CASES
def test_every_producer_is_in_a_layer_or_named_as_left_whole(name: str, cut: str) -> None:
    model, structure = zoo.make(name), zoo.structure(name, cut)
    cut_ones = {module for layer in structure.layers for module in layer.producers}
    assert not set(structure.ignored) & cut_ones
    for operation in structure.operations:
        module: Any = model.get_submodule(operation.module)
        if getattr(module, "groups", 1) == getattr(module, "in_channels", 0) > 1 or isinstance(module, nn.RNNBase):
            continue  # depthwise; or what it makes is never cut
        owner = operation.parameter.rpartition(".")[0]  # of a weight that several share, the first of them
        assert owner in cut_ones | set(structure.ignored), operation.module


def test_what_is_left_whole_with_others_leads_to_the_reason() -> None:
    ignored = zoo.structure("downsample").ignored
    assert "residual trunk" in ignored["block2.conv2"]
    assert ignored["block2.downsample.0"] == "it is coupled to block2.conv2, which is left whole"
    assert ignored["block1.conv2"] == "it is coupled to stem.0, which is left whole"


@pytest.mark.parametrize("name", ["shuffle", "channel_mean"])
@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_a_wrong_coupling_is_found_out_whatever_the_scale_of_the_logits(name: str, scale: float) -> None:
    # an untrained MobileNet's logits are about 1e-11: a tolerance that is not relative would let everything pass
    model = zoo.make(name)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.mul_(scale)
    structure = find_layers(model, zoo.RGB)
    assert {layer.name: layer.units for layer in structure.layers} == zoo.ZOO[name].inner


@CASES
def test_layers_come_in_the_order_of_execution(name: str, cut: str) -> None:
    model, structure = zoo.make(name), zoo.structure(name, cut)
    order: list[str] = []
    for module_name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=module_name: order.append(name))
    with torch.no_grad():
        model(zoo.images(name, 1))
    places = [order.index(layer.module) for layer in structure.layers]
    assert places == sorted(places)
    modules = list(dict.fromkeys(op.module for op in structure.operations))
    last_calls = [max(i for i, n in enumerate(order) if n == module) for module in modules]
    first_calls = [order.index(module) for module in modules]
    assert first_calls == sorted(first_calls)
    assert len(last_calls) == len(set(last_calls))


@EVERY
def test_finding_layers_changes_nothing(name: str) -> None:
    model = zoo.make(name).train()
    next(iter(model.children())).eval()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[-1].grad = torch.ones_like(parameters[-1])
    before = state_of(model)
    find_layers(model, zoo.ZOO[name].shape, cut="all")
    assert_same_state(model, before)


@CASES
def test_members_of_a_layer_do_not_overlap(name: str, cut: str) -> None:
    model, structure = zoo.make(name), zoo.structure(name, cut)
    for layer in structure.layers:
        assert bool(layer.weights("out")) != layer.sampled
        assert any(part.role == "in" for part in layer.slices)
        for part in layer.slices:
            assert len(part.positions) == layer.units
            assert len(np.unique(part.positions)) == part.positions.size
            if part.parameter in model.state_dict():
                assert part.size == model.state_dict()[part.parameter].shape[part.dim]
            elif part.tensor != "source":  # what a forward counts heads or parts by
                assert part.size == getattr(model.get_submodule(part.module), part.tensor)
            assert part.positions.min() >= 0
            assert part.positions.max() < part.size


def part_of(structure: ChannelStructure, layer: str, parameter: str, dim: int) -> np.ndarray:
    found = structure.layers[structure.index(layer)]
    (part,) = [part for part in found.slices if (part.parameter, part.dim) == (parameter, dim)]
    return part.positions


def test_a_flattened_channel_is_four_inputs() -> None:
    positions = part_of(zoo.structure("vgg"), "2.0", "5.weight", 1)
    assert positions.tolist() == [[4 * c, 4 * c + 1, 4 * c + 2, 4 * c + 3] for c in range(6)]


def test_a_unit_in_front_of_groups_is_one_channel_of_each() -> None:
    structure = zoo.structure("grouped")
    assert part_of(structure, "0.0", "0.0.weight", 0).tolist() == [[c, c + 4] for c in range(4)]
    assert part_of(structure, "0.0", "1.0.weight", 1).tolist() == [[c] for c in range(4)]


def test_concatenated_channels_lie_behind_one_another() -> None:
    structure = zoo.structure("unet")
    assert part_of(structure, "deep.0", "up.0.weight", 1).ravel().tolist() == list(range(8))
    assert part_of(structure, "down.0", "up.0.weight", 1).ravel().tolist() == list(range(8, 14))
    assert part_of(structure, "down.0", "deep.0.weight", 1).ravel().tolist() == list(range(6))


def test_a_trunk_couples_its_producers() -> None:
    structure = zoo.structure("residual", "all")
    producers = {layer.name: {part.module for part in layer.weights("out")} for layer in structure.layers}
    assert producers["conv1"] == {"conv1", "layer1.0.conv2"}
    sources = [(part.parameter, part.dim) for part in structure.layers[0].slices if part.tensor == "source"]
    assert sources == [("layer2.0.shortcut.source", 1)]


def test_a_shared_module_is_one_dimension_in_and_out() -> None:
    structure = zoo.structure("shared")
    parts = [part for part in structure.layers[0].slices if part.module == "again"]
    assert {(part.tensor, part.dim, part.role) for part in parts} == {
        ("weight", 0, "out"),
        ("weight", 1, "in"),
        ("bias", 0, "out"),
    }


def test_operations_count_every_call() -> None:
    model = zoo.make("shared")
    operations = {op.module: op for op in count_operations(model, zoo.images("shared", 2))}
    assert operations["again"].positions == 2 * 64
    assert operations["stem.0"].positions == 64
    assert operations["stem.0"].flops == 64 * 6 * 3 * 9
    assert operations["head.2"].positions == 1


def test_excluded_layers_stay_whole() -> None:
    structure = find_layers(zoo.make("vgg"), zoo.RGB, ignore=["2.0"])
    assert [layer.name for layer in structure.layers] == ["0.0", "5"]
    assert structure.ignored["2.0"] == "excluded by the config"


def test_a_layer_of_one_unit_stays_whole() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Conv2d(1, 4, 3), zoo.Head(4))
    structure = find_layers(model, zoo.RGB)
    assert [layer.name for layer in structure.layers] == ["1"]
    assert structure.ignored["0"] == "it is one unit wide"


class ThroughNumpy(nn.Module):
    """Leaves torch half-way: what comes back is no longer known to hold channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.head = zoo.Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.from_numpy(np.tanh(self.conv(x).numpy())))


class Two(nn.Conv2d):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return x, x[:1]


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (
            zoo.make("vgg"),
            {"ignore": ["2.3"]},
            r"layers.ignore names '2.3', which is no layer here, nor a module's type – did you mean 2.0\?",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(192, 5)),
            {},
            "nothing in this network can be cut .*it is the network's o",
        ),
        (
            ThroughNumpy(),
            {},
            r"nothing in this network can be cut \(conv: nothing that can be followed takes its channels; head.2: ",
        ),
    ],
)
def test_plan_errors(model: nn.Module, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        find_layers(model, zoo.RGB, **arguments)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (zoo.make("vgg"), (1, 8, 8), "the network does not run on images of 1×8×8: "),
        (zoo.make("vgg"), (3, 20, 20), "the network does not run on images of 3×20×20: "),
        (zoo.Strict(), (3, 8), "the network does not run on images of 3×8: "),
        (nn.Flatten(), (3, 8, 8), r"the network \(Flatten\) has no parameters: there is nothing to prune"),
        (Two(3, 3, 1), (3, 8, 8), "returns a tuple .* expected tensors of floats with a row for each image"),
    ],
)
def test_value_errors(model: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_layers(model, shape)


def test_equal_networks_have_equal_fingerprints() -> None:
    first, second = (find_layers(zoo.make("residual", seed), zoo.RGB) for seed in (0, 1))
    assert first.fingerprint == second.fingerprint
    assert copy.copy(first).fingerprint == first.fingerprint


def test_other_networks_have_other_fingerprints() -> None:
    structures = [zoo.structure(name, cut) for name in zoo.ZOO for cut in ("inner", "all")]
    distinct = {(tuple(sorted(s.shapes.items())), tuple(layer.name for layer in s.layers)) for s in structures}
    assert len({s.fingerprint for s in structures}) == len(distinct)
    wider = find_layers(zoo.CifarResNet(1, zoo.CLASSES + 1, widths=(4, 6, 8)), zoo.RGB)
    assert wider.fingerprint != zoo.structure("residual").fingerprint


def test_bad_counts_are_refused() -> None:
    structure = zoo.structure("vgg")
    with pytest.raises(PlanError, match="2 numbers of units kept for a network of 3 layers"):
        structure.check_kept([1, 2])
    for count in (0, 7, -1):
        with pytest.raises(PlanError, match=rf"layer 2.0: {count} units kept is outside 1 … 6"):
            structure.check_kept([8, count, 10])


def test_a_module_of_ones_own_that_keeps_its_size_is_named() -> None:
    class Scaled(nn.Module):
        """Has noted down how many channels there are."""

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.channels = channels
            self.register_buffer("scale", torch.linspace(0.5, 2.0, channels))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale.view(1, self.channels, 1, 1)

    def body(norm: nn.Module) -> list[nn.Module]:
        return [nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.Flatten()]

    model = nn.Sequential(*body(Scaled(8)), nn.Linear(6 * 16, 5))
    found = find_layers(model, zoo.RGB)
    assert [layer.name for layer in found.layers] == ["3"]
    why = "1, a Scaled, reshapes to a size that it takes from its input or a constant: make that size -1"
    assert found.ignored["0"].endswith(f"could not be traced ({why})")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class BySize(zoo.Attention):
    """Attention whose last reshape is to the width of its input."""

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width))


def test_a_size_that_is_taken_from_the_input_is_named_with_the_remedy() -> None:
    model = zoo.Transformer(fused=True)
    model.attention = BySize(12, 4, fused=True)
    structure = find_layers(model.eval(), zoo.RGB)
    assert [layer.name for layer in structure.layers] == ["mlp.0"]
    assert "attention, a BySize, reshapes to a size that it takes from its input" in structure.ignored["attention.qkv"]
    assert "make that size -1" in structure.ignored["attention.qkv"]


def test_a_network_that_cannot_be_copied_is_refused_in_a_line() -> None:
    model = zoo.make("vgg")
    model.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"^the network cannot be copied \(.*lock.*keep what cannot out"):
        find_layers(model, zoo.RGB)
