"""A network's values at chosen nodes, for more images than its feature maps would fit into memory for.

Whoever fits layer after layer looks at the same images again and again, a little further behind each time. Walked node
by node with all images at a time, two feature maps of all of them are in memory: 3 GB for 500 images of 224×224 in
front of a ResNet's first layer, 13 GB for a VGG. Here images go batch by batch as far as is asked, and what others
will go on from (the front) is kept as long as it fits, and in a file where it does not; where there is no room for
that, the walk begins again where it last did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from ..training.inputs import count
from .batches import Batches, targets_of
from .graph import arguments, call_node
from .spill import Spill, Spilled

FRONT = 2**28  # bytes in memory that the values of all images may take from which a walk goes on

Look = tuple[fx.Node, Callable[[Any], Any]]
"""A node, and what is made of its value at once, so that the value itself can go."""


class Stream:
    """One network, walked further with every `read`; its weights behind what was read may change in between.

    Attributes:
        model: the network.
        passes: how often every node was computed, over all batches.
    """

    def __init__(
        self,
        order: Iterable[fx.Node],
        model: nn.Module,
        images: Batches,
        reads: Iterable[fx.Node],
        held: int = FRONT,
    ):
        """Nothing is computed yet.

        Args:
            order: the graph's nodes, inputs before their users.
            model: the network, or one with the same forward.
            images: (N, C, H, W) and labels, or what else the network and the objective take, in batches.
            reads: nodes that will be read, each as often as it will.
            held: bytes that the front may take in memory.
        """
        self.model = model
        self.passes: Counter[str] = Counter()
        self._images = images
        self._held = held
        self._reads = Counter(reads)
        needed = behind(self._reads, frozenset())
        self._order = [node for node in order if node in needed]
        self._users = {node: [user for user in node.users if user in needed] for node in self._order}
        self._front: dict[fx.Node, list[Any]] = {}
        self._passed: set[fx.Node] = set()  # computed on the way to the front, or in it

    @property
    def first(self) -> int:
        """Images in the first batch."""
        return count(targets_of(self._images)[0])

    def read(self, *looks: Look) -> Iterator[list[Any]]:
        """What is made of the values at some nodes, a batch at a time; to be walked to its end before the next read."""
        self._reads.subtract(node for node, _ in looks)
        due = behind([node for node, _ in looks], self._front)
        nodes = [node for node in self._order if node in due]
        passed = self._passed | set(nodes)
        front: dict[fx.Node, list[Any]] = {
            node: [] for node in self._order if (node in due or node in self._front) and self._awaited(node, passed)
        }
        self.passes.update(node.name for node in nodes)
        sizes = list(map(count, targets_of(self._images)))
        fits, file = True, None
        for number in range(len(sizes)):
            seen, values = self._compute(number, nodes, looks, front)
            if number == 0:
                size = _bytes(values) * sum(sizes) // sizes[0]
                file = None if size <= self._held else _spill(size)
                fits = size <= self._held or file is not None
            if file is not None:
                fits = fits and _spilled(file, values, front)
            elif fits:
                for kept in self._front.values():
                    kept[number] = None
                for node, kept in front.items():
                    kept.append(values[node])
            del values
            yield seen
        if fits:
            self._front, self._passed = front, passed

    def _awaited(self, node: fx.Node, passed: Collection[fx.Node]) -> bool:
        """Whether its value will be looked at; images themselves are there without being kept."""
        return node.op != "placeholder" and (
            self._reads[node] > 0 or any(user not in passed for user in self._users[node])
        )

    def _compute(
        self, number: int, nodes: Sequence[fx.Node], looks: Sequence[Look], keep: Collection[fx.Node]
    ) -> tuple[list[Any], dict[fx.Node, Any]]:
        """One batch: what is made of the values, and the values that are to be kept."""
        front = {node: kept[number] for node, kept in self._front.items()}
        values = {node: kept.value if isinstance(kept, Spilled) else kept for node, kept in front.items()}
        seen = {i: see(values[node]) for i, (node, see) in enumerate(looks) if node in values}
        uses = Counter(before for node in nodes for before in node.all_input_nodes)
        placeholders = [node for node in nodes if node.op == "placeholder"]
        given = arguments(placeholders[0].graph, self._images[number][0]) if placeholders else {}
        for node in nodes:
            if node.op == "placeholder":
                values[node] = given.pop(node)
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = call_node(self.model, node, args, kwargs)
                del args, kwargs
            seen.update((i, see(values[node])) for i, (looked, see) in enumerate(looks) if looked is node)
            uses.subtract(node.all_input_nodes)
            for used in (*node.all_input_nodes, node):
                if uses[used] <= 0 and used not in keep:
                    del values[used]
        return [seen[i] for i in range(len(looks))], {node: values[node] for node in keep}


def _spill(size: int) -> Spill | None:
    """A file for so many bytes; none where there is no room."""
    try:
        return Spill(size)
    except OSError:
        return None


def _spilled(file: Spill, values: dict[fx.Node, Any], front: dict[fx.Node, list[Any]]) -> bool:
    """Whether a batch's values have gone into the file."""
    try:
        for node, kept in front.items():
            kept.append(file.put(values[node]))
    except OSError:  # the disk is full, by whoever filled it
        return False
    return True


def behind(nodes: Iterable[fx.Node], known: Collection[fx.Node]) -> set[fx.Node]:
    """The nodes and all that they are computed from, as far as it is not known."""
    found: set[fx.Node] = set()
    stack = [node for node in nodes if node not in known]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += [before for before in node.all_input_nodes if before not in known]
    return found


def computing_order(graph: fx.Graph, needed: Callable[[fx.Node], list[fx.Node]]) -> list[fx.Node]:
    """The graph's nodes in an order in which each comes after all that is `needed` for it, else as in the code."""
    order = [node for node in graph.nodes if node.op == "placeholder"]
    there = set(order)
    for start in graph.nodes:
        stack = [start] if start.op != "output" else []
        while stack:  # depth first, without recursion: networks are deeper than Python's stack
            top = stack[-1]
            missing = [before for before in needed(top) if before not in there]
            if top in there or not missing:
                stack.pop()
                if top not in there:
                    there.add(top)
                    order.append(top)
            else:
                stack += missing
    return order


def _bytes(values: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(list(values.values())) if isinstance(t, Tensor))
