"""Batches of any form: counted, cut and regrouped without being made; walked; checked before anything takes long."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.networks.batches import LazyBatches, with_images
from secateur.networks.checks import check_forward
from secateur.networks.graph import trace
from secateur.networks.inference import count_images, first_images, regrouped
from secateur.networks.stream import Stream
from secateur.training.inputs import as_json, call, check_json, joined, leaves, shape_of


def inputs(kind: str, first: int, count: int) -> Any:
    """Images numbered from `first`, in one of the forms that a network takes."""
    x = torch.arange(first, first + count).float()[:, None].expand(-1, 3)
    return {"tensor": x, "tuple": (x, x + 1), "dict": {"a": x, "b": x.long()}, "list": list(x)}[kind]


KINDS = ("tensor", "tuple", "dict", "list")


def lazy(kind: str, sizes: list[int], made: list[int]) -> LazyBatches:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]

    def make(number: int) -> Any:
        made.append(number)
        return inputs(kind, starts[number], sizes[number])

    targets = [{"boxes": torch.arange(start, start + size)} for start, size in zip(starts, sizes, strict=True)]
    return LazyBatches(make, targets, range(len(sizes)))


def same(some: Any, others: Any) -> bool:
    one, other = leaves(some), leaves(others)
    return one.keys() == other.keys() and all(torch.equal(one[path], other[path]) for path in one)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(KINDS), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 22))
def test_the_first_images_and_any_groups_are_the_same_images(kind: str, sizes: list[int], count: int) -> None:
    made: list[int] = []
    batches = lazy(kind, sizes, made)
    first = first_images(batches, count)
    few = min(count, sum(sizes))
    assert (count_images(batches), count_images(first)) == (sum(sizes), few)
    assert not made
    images, targets = joined(first)
    assert same(images, inputs(kind, 0, few))
    assert targets["boxes"].tolist() == list(range(few))
    assert made == list(range(len(first)))
    groups = list(regrouped(batches, count))
    assert same(joined(groups), inputs(kind, 0, sum(sizes)))


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_changed_when_they_are_looked_at(kind: str) -> None:
    made: list[int] = []
    twice = with_images(lazy(kind, [2, 3], made), lambda images: joined([images, images]))
    assert not made
    assert same(twice[1][0], joined([inputs(kind, 2, 3)] * 2))
    assert made == [1]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"sum": self.one(a) + self.other(b), "product": self.one(a) * self.other(b)}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("held", [0, 2**20])
def test_a_network_of_several_inputs_is_walked_batch_by_batch(held: int, named: bool) -> None:
    torch.manual_seed(0)
    model = Two().eval()

    def both(count: int) -> Any:
        pair = torch.randn(count, 3), torch.randn(count, 3)
        return dict(zip("ba", pair, strict=True)) if named else pair

    batches = [(both(count), torch.zeros(count)) for count in (3, 2)]
    graph = trace(model, batches[0][0])
    layers = [node for node in graph.nodes if node.op == "call_module"]
    tail = [node for node in graph.nodes if node.op == "call_function"]
    stream = Stream(graph.nodes, model, batches, [*layers, *tail], held)
    with torch.no_grad():
        list(stream.read((layers[1], lambda value: value)))
        seen = list(stream.read(*[(node, lambda value: value) for node in tail]))
        for (given_inputs, _), values in zip(batches, seen, strict=True):
            expected = call(model, given_inputs)
            assert torch.allclose(values[0], expected["sum"])
            assert torch.allclose(values[1], expected["product"])


class Random(Two):
    def forward(self, a: Tensor, b: Tensor) -> Any:
        return {"fixed": a, "drawn": self.one(a) + torch.rand(len(b), 4)}


class InPlace(Two):
    def forward(self, a: Tensor, b: Tensor) -> Any:
        return super().forward(a, b.add_(1.0))


@pytest.mark.parametrize(("model", "message"), [(Random(), "other outputs each time"), (InPlace(), "in place")])
def test_forwards_of_any_form_are_checked(model: nn.Module, message: str) -> None:
    both = {"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)}
    sound = Two().eval()
    assert same(check_forward(sound, both), call(sound, both))
    with pytest.raises(ValueError, match=message):
        check_forward(model.eval(), both)
    with pytest.raises(ValueError, match="the network does not run on images of a 4, b 3"):
        check_forward(Two().eval(), {**both, "a": torch.zeros(2, 4)})
    assert not both["b"].any()


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_are_read_as_they_are_written(kind: str) -> None:
    tree = json.loads(json.dumps(as_json(shape_of(inputs(kind, 0, 2)))))
    assert check_json(tree) == tree


@pytest.mark.parametrize(
    "tree", [3, [0, 2], [3, -1], ["3"], [True], {"a": [0]}, {"shape": [2], "most": "x", "dtype": "int64"}, None, [1.5]]
)
def test_what_is_no_shape_is_refused(tree: Any) -> None:
    with pytest.raises(ValueError, match=r"is no shape of inputs|has a size of"):
        check_json(tree)
