"""Networks walked from node to node, batch by batch: the same values, in bounded memory."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from secateur.networks import spill as spill_module
from secateur.networks import stream as stream_module
from secateur.networks.batches import Batches
from secateur.networks.graph import trace
from secateur.networks.spill import Spill
from secateur.networks.stream import Stream, computing_order


class Ladder(nn.Module):
    """Four steps, the second of which is added to what the fourth gives; what it concatenates is a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList([nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 8, 4)])

    def forward(self, x: Tensor) -> Tensor:
        first = self.steps[0](x).relu()
        second = self.steps[1](first)
        parts = torch.cat([first, second], 1).split([4, 4], 1)
        third = self.steps[2](torch.cat([parts[0], parts[1]], 1))
        return (self.steps[3](third) + second).mean((2, 3))


def ladder() -> tuple[nn.Module, fx.Graph, Batches]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Ladder().eval()
        batches = [(torch.randn(n, 3, 6, 6), torch.zeros(n)) for n in (3, 3, 2)]
    return model, trace(model, batches[0][0][:1]), batches


def steps(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if str(node.target).startswith("steps")]


def whole(value: Tensor) -> Tensor:
    return value


class Full(Spill):
    """On a disk that has room for so many tensors."""

    tensors = 0

    def _write(self, tensor: Tensor) -> Any:
        Full.tensors -= 1
        if Full.tensors < 0:
            raise OSError(errno.ENOSPC, "full")
        return super()._write(tensor)


@pytest.fixture
def room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> int:
    """Tensors that the disk has room for."""
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    monkeypatch.setattr(stream_module, "Spill", Full)
    monkeypatch.setattr(Full, "tensors", request.param)
    return int(request.param)


@pytest.mark.parametrize("held", [0, 8 * 4 * 6 * 6 * 4 + 100, 2**20])
@pytest.mark.parametrize("room", [0, 5, 1000], indirect=True)
@torch.no_grad()
def test_values_are_the_networks_however_little_is_kept(held: int, room: int) -> None:
    model, graph, batches = ladder()
    reads = [node.all_input_nodes[0] for node in steps(graph)] + [steps(graph)[1]]
    stream = Stream(graph.nodes, model, batches, reads, held)
    seen: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _m, args, name=name: seen.setdefault(name, []).append(args[0].clone()))
        for name, module in model.named_modules()
        if name.startswith("steps.")
    ]
    for images, _ in batches:
        model(images)
    for hook in hooks:
        hook.remove()
    for node in steps(graph):
        looks = [(node.all_input_nodes[0], whole)]
        if node is steps(graph)[3]:
            looks.append((steps(graph)[1], whole))  # long after it was computed
        for (value, *_), expected in zip(stream.read(*looks), seen[str(node.target)], strict=True):
            assert torch.equal(value, expected)
        kept = [t for values in stream._front.values() for t in values if isinstance(t, Tensor)]
        assert sum(t.numel() * 4 for t in kept) <= held
    most = max(count for name, count in stream.passes.items() if name.startswith("steps"))
    assert most == ({0: 3, 2**20: 1}.get(held, most) if room == 0 else 1 if room == 1000 else most)


def test_what_is_spilled_is_what_was_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tensors = [last, torch.randn(3, 4).t(), torch.randn(0, 2), torch.tensor(1.5), torch.randn(2).bfloat16()]
    tensors += [torch.arange(6).reshape(2, 3), torch.tensor([True, False])]
    file = Spill(1000)
    values = [file.put({"a": tensor, "b": (tensor.shape, 7)}) for tensor in tensors]
    assert list((tmp_path / "cache").iterdir()) == []  # nothing that a killed process would leave
    for spilled, tensor in reversed(list(zip(values, tensors, strict=True))):
        found = spilled.value
        assert torch.equal(found["a"], tensor)
        assert (found["a"].dtype, found["a"].stride()) == (tensor.dtype, tensor.stride())
        assert found["b"] == (tensor.shape, 7)
        found["a"].zero_()
        assert torch.equal(spilled.value["a"], tensor)
    monkeypatch.setattr(spill_module, "SPARE", 2**62)
    with pytest.raises(OSError, match="GB to spare"):
        Spill(1000)


@torch.no_grad()
def test_weights_behind_what_was_read_may_change() -> None:
    model, graph, batches = ladder()
    first, second = steps(graph)[:2]
    stream = Stream(graph.nodes, model, batches, [first, second])
    before = [value for (value,) in stream.read((first, whole))]
    model.get_parameter("steps.1.weight").mul_(2.0)
    after = [value for (value,) in stream.read((second, whole))]
    for x, y in zip(before, after, strict=True):
        torch.testing.assert_close(y, model.get_submodule("steps.1")(x.relu()))


@torch.no_grad()
def test_nothing_is_kept_that_nobody_will_look_at() -> None:
    model, graph, batches = ladder()
    last = steps(graph)[3]
    stream = Stream(graph.nodes, model, batches, [last])
    _ = list(stream.read((last, whole)))
    assert stream._front == {}
    assert max(stream.passes.values()) == 1


def test_an_order_that_waits_for_more_than_inputs() -> None:
    _, graph, _ = ladder()
    first, second, third, _ = steps(graph)
    plain = computing_order(graph, lambda node: list(node.all_input_nodes))
    assert plain == [node for node in graph.nodes if node.op != "output"]
    sum_node = next(node for node in graph.nodes if str(node.target).endswith("add>") or node.name == "add")
    other = computing_order(graph, lambda node: [*node.all_input_nodes, *([second] if node is third else [])])
    assert other.index(second) < other.index(third) < other.index(sum_node)
    assert other.index(first) < other.index(second)
