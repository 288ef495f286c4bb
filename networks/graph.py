"""A network as a torch.fx graph, and its values node by node."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..training.inputs import Detector, Inputs, call, joined
from . import in_place
from .channel_pad import ChannelPad
from .constant import Constant
from .copying import sharing
from .detectors import Opaque
from .inference import FAILURES, alike
from .norms import LAYERS
from .own_convolutions import PREPARING
from .quantise.quantisers import Quantised
from .world import without_fast_attention

CONSTANT = "constant"  # in a node's meta: a tensor that the forward makes anew each time
_COUNTS = "counts"  # in a node's meta: some of its arguments are numbers of the network's own modules
_UNTRACEABLE = "torch.fx cannot follow this network's forward"


class UntraceableError(ValueError):
    """The network cannot be walked as a torch.fx graph."""


class _Count(int):
    """A number of a module's own, which knows where it is from: in a pruned network it may be another."""

    place: tuple[str, str]

    @classmethod
    def of(cls, number: int, module: str, name: str) -> _Count:
        """The same number."""
        found = cls(number)
        found.place = (module, name)
        return found

    def __deepcopy__(self, _memo: Any) -> _Count:
        return self


class _Proxy(fx.Proxy):
    """Says how long its value is, or which number, for the images of the trace; what comes of it is checked."""

    tracer: _Tracer

    def __len__(self) -> int:
        return len(self.tracer.known(self))

    def __index__(self) -> int:
        return operator.index(self.tracer.known(self))

    def __getattr__(self, name: str) -> Any:
        value = self.tracer.values.get(self.node) if name in ("device", "dtype") else None
        return getattr(value, name) if isinstance(value, Tensor) else super().__getattr__(name)


class _Tracer(fx.Tracer):
    """Goes into everything that has layers inside, and takes the way that the forward takes on images of this form.

    What is in a tensor decides nothing: a forward that asks cannot be traced. Its form may: a check for a shape, a loop
    over the parts of a split.
    """

    proxy_buffer_attributes = True  # a pruned network has fewer of them

    def __init__(self, root: nn.Module, inputs: Inputs):
        super().__init__()
        self.traced_func_name = "heads" if isinstance(root, Detector) else "forward"
        self._model = root
        self._inputs = inputs
        self._tensors = {**dict(root.named_parameters()), **dict(root.named_buffers())}
        self._outputs = self._run()  # beforehand: while a forward is traced, modules do not compute
        self.values: dict[fx.Node, Any] = {}
        self._placeholders = 0

    def _run(self) -> dict[str, list[Any]]:
        """What every module that is not gone into returns, call by call."""
        outputs: dict[str, list[Any]] = {}
        hooks = [
            module.register_forward_hook(lambda _m, _i, out, name=name: outputs.setdefault(name, []).append(out))
            for name, module in self._model.named_modules()
            if self.is_leaf_module(module, name)
        ]
        call(self._model, self._inputs)
        for hook in hooks:
            hook.remove()
        return outputs

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layers = any(isinstance(inner, LAYERS) for inner in m.modules() if inner is not m)
        known = isinstance(m, nn.Linear) or super().is_leaf_module(
            m, module_qualified_name
        )  # timm has a Linear of its own
        return isinstance(m, (ChannelPad, Constant, Opaque, Quantised, *PREPARING)) or (not layers and known)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *others: Any, **named: Any) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, *others, **named)
        if kind == "placeholder":
            self.values[node] = self._given(str(target), args)
        elif kind == "get_attr":
            name = str(target)
            self.values[node] = self._tensors[name] if name in self._tensors else vars(self._model)[name]
        elif kind == "call_module":
            self.values[node] = self._outputs[str(target)].pop(0)
        elif kind != "output":
            given = fx.map_arg((args, kwargs), self.values.__getitem__)
            self.values[node] = call_node(self._model, node, *given)
        return node

    def known(self, proxy: fx.Proxy) -> Any:
        """The value, where it is none of images' contents.

        Raises:
            TypeError: it is a single number in a tensor.
        """
        value = self.values[proxy.node]
        if isinstance(value, Tensor) and not value.dim():
            raise TypeError("its way depends on what is in the images")
        return value

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return iter([operator.getitem(obj, i) for i in range(len(self.known(obj)))])

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self.known(obj)
        if isinstance(value, Tensor):
            raise TypeError("its way depends on what is in the images")
        return bool(value)

    def _given(self, name: str, default: tuple[Any, ...]) -> Any:
        place, self._placeholders = self._placeholders, self._placeholders + 1
        fallback = default[0] if default else None
        if isinstance(self._inputs, Mapping):
            return self._inputs.get(name, fallback)
        given = self._inputs if isinstance(self._inputs, tuple) else (self._inputs,)
        return given[place] if place < len(given) else fallback


def _count(root: nn.Module) -> None:
    """Make the numbers of a network's own modules know where they are from."""
    for name, module in root.named_modules():
        for attribute, value in vars(module).items() if not type(module).__module__.startswith("torch.nn") else ():
            if type(value) is int:
                vars(module)[attribute] = _Count.of(value, name, attribute)


def trace(model: nn.Module, image: Inputs) -> fx.Graph:
    """The network's graph, of which it is sure that a walk computes what the network does.

    Args:
        model: in eval mode.
        image: (1, C, H, W) to try it on, or what else it takes.

    Raises:
        UntraceableError: its forward depends on values (data-dependent control flow) or on the number of images, or it
            changes a tensor in place that is used again.
    """
    try:
        root = sharing(model)  # tracing leaves constants in it, and proxies where its modules keep what they compute
        _count(root)
        with without_fast_attention(), torch.no_grad():
            graph = _Tracer(root, image).trace(root)
        graph._tracer_cls = None  # that a copy in another process would make anew
    except Exception as error:  # fx raises whatever the user's forward raises on a proxy
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UntraceableError(f"{_UNTRACEABLE} ({reason})") from error
    in_place.told_apart(graph, model)
    for node in graph.nodes:
        node.meta[_COUNTS] = any(isinstance(value, _Count) for value in tree_leaves((node.args, node.kwargs)))
        if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
            node.meta[CONSTANT] = getattr(root, str(node.target))
    for inputs in (image, joined([image, image])):
        if not _computes(graph, model, inputs):
            raise UntraceableError(
                f"{_UNTRACEABLE} (it changes a tensor in place that is used again, or depends on how many images it is "
                "given)"
            )
    return graph


@torch.no_grad()
def _computes(graph: fx.Graph, model: nn.Module, inputs: Inputs) -> bool:
    """Whether a walk gives what the network gives."""
    try:
        return alike(Walk(graph, model, [inputs]).result()[0], call(model, inputs))
    except FAILURES:
        return False


class Walk:
    """One network's values, node by node, all images at a time; dropped when nobody will look at them again.

    Attributes:
        graph: the network's.
        model: the network.
        values: node → one entry a batch.
    """

    def __init__(self, graph: fx.Graph, model: nn.Module, images: Sequence[Inputs], reads: Iterable[fx.Node] = ()):
        """Nothing is computed yet.

        Args:
            graph: the network's, or that of one with the same forward.
            model: the network.
            images: batches (N, C, H, W), or what else the network takes.
            reads: nodes that will be `read`, each as often as it will.
        """
        self.graph = graph
        self.model = model
        self.values: dict[fx.Node, list[Any]] = {}
        self._count = len(images)
        self._users = Counter(reads)
        for node in graph.nodes:
            self._users[node] += len(node.users)
        given = [arguments(graph, inputs) for inputs in images]
        for node in given[0] if given else ():
            self.values[node] = [values[node] for values in given]

    def run(self) -> None:
        """Compute all nodes."""
        for node in self.graph.nodes:
            if node.op != "output":
                self.evaluate(node)

    def result(self) -> list[Any]:
        """What the network returns, one entry a batch."""
        output = next(node for node in self.graph.nodes if node.op == "output")
        for node in output.all_input_nodes:  # held: the output's own use of them is never over
            self.evaluate(node)
        held = [{node: self.values[node][batch] for node in output.all_input_nodes} for batch in range(self._count)]
        return [fx.map_arg(output.args[0], one.__getitem__) for one in held]

    def read(self, node: fx.Node) -> list[Any]:
        """A node's values, computed if they are not there; counts as one use."""
        self.evaluate(node)
        values = self.values[node]
        self.release(node)
        return values

    def evaluate(self, node: fx.Node) -> None:
        """Compute a node and what it needs, if it is not there."""
        stack = [node]
        while stack:  # depth first, without recursion: networks are deeper than Python's stack
            top = stack[-1]
            missing = [before for before in self.needed(top) if before not in self.values]
            if top in self.values or not missing:
                stack.pop()
                if top not in self.values:
                    self.compute(top)
            else:
                stack += missing

    def needed(self, node: fx.Node) -> list[fx.Node]:
        """What must be there before a node is computed."""
        return list(node.all_input_nodes)

    def compute(self, node: fx.Node) -> None:
        """Compute a node whose inputs are there."""
        inputs = {before: self.values[before] for before in node.all_input_nodes}
        results = []
        for i in range(self._count):
            one = {before: values[i] for before, values in inputs.items()}
            args, kwargs = fx.map_arg((node.args, node.kwargs), one.__getitem__)
            results.append(call_node(self.model, node, args, kwargs))
        self.values[node] = results
        for before in self.needed(node):
            self.release(before)

    def release(self, node: fx.Node) -> None:
        """One user less."""
        self._users[node] -= 1
        if self._users[node] <= 0:
            self.values[node] = []  # known, but no longer held


def arguments(graph: fx.Graph, inputs: Inputs) -> dict[fx.Node, Any]:
    """Placeholder → its value: as the network is called with them, by position or by name, else its default."""
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    if isinstance(inputs, Mapping):
        given = {node: inputs[node.target] for node in nodes if node.target in inputs}
    else:
        given = dict(zip(nodes, inputs if isinstance(inputs, tuple) else (inputs,), strict=False))
    return {node: given[node] if node in given else next(iter(node.args), None) for node in nodes}


def call_node(model: nn.Module, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """One node, never in place: values stay as their other users expect them."""
    if node.meta.get(_COUNTS):
        args, kwargs = tree_map(partial(_counted, model), (args, kwargs))
    if node.op == "call_module":
        module: Any = model.get_submodule(str(node.target))
        if getattr(module, "inplace", False):
            module.inplace = False
            try:
                return module(*args, **kwargs)
            finally:
                module.inplace = True
        return module(*args, **kwargs)
    if node.op == "call_function":
        if "inplace" in kwargs:
            kwargs = {**kwargs, "inplace": False}
        function: Any = node.target
        return in_place.FUNCTIONS.get(function, function)(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], in_place.method(str(node.target)))(*args[1:], **kwargs)
    assert node.op == "get_attr"
    return attribute(model, node)


def settled(graph: fx.Graph, model: nn.Module) -> fx.Graph:
    """The graph with the numbers that this network's modules have; itself, where it has none of theirs."""
    if not any(node.meta.get(_COUNTS) for node in graph.nodes):
        return graph
    found = fx.Graph()
    found.output(found.graph_copy(graph, {}))
    for node in found.nodes:
        node.args, node.kwargs = tree_map(partial(_counted, model), (node.args, node.kwargs))
    return found


def _counted(model: nn.Module, value: Any) -> Any:
    if not isinstance(value, _Count):
        return value
    module, name = value.place
    return getattr(model.get_submodule(module), name)


def attribute(model: nn.Module, node: fx.Node) -> Any:
    """What a node takes from the network: a constant of its forward, or what it holds under that name."""
    return node.meta[CONSTANT] if CONSTANT in node.meta else operator.attrgetter(str(node.target))(model)
