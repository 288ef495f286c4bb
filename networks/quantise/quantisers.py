"""Networks of few bits, trained: a scheme says what weights, inputs and gradients of a layer become."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.registry import Registry
from ...training.inputs import Inputs
from ..copying import copied
from ..norms import fold_batchnorm
from .affine import Affine
from .formulas import binary_weight, dorefa_input, dorefa_weight, ternary_weight, xnor_scale
from .straight import straight_sign, with_few_bit_gradient

Layer = nn.Conv2d | nn.Linear

DECAY = 0.99  # of the running ranges, a step


class Quantiser(nn.Module):
    """What becomes of one layer's numbers; this one leaves them as they are."""

    def __init__(self, _layer: Layer):
        super().__init__()

    def weight(self, weight: Tensor) -> Tensor:
        """That is computed with."""
        return weight

    def inputs(self, x: Tensor) -> Tensor:
        """That are computed with."""
        return x

    def output(self, layer: Layer, x: Tensor) -> Tensor:
        """Of the layer."""
        return _computed(layer, self.inputs(x), self.weight(layer.weight), layer.bias)


QUANTISERS: Registry[Callable[..., Quantiser]] = Registry("quantiser")


@QUANTISERS.register("bwn")
class BinaryWeights(Quantiser):
    """`binary_weight`."""

    def weight(self, weight: Tensor) -> Tensor:
        """α sign(w)."""
        return binary_weight(weight)


@QUANTISERS.register("twn")
class TernaryWeights(Quantiser):
    """`ternary_weight`."""

    def weight(self, weight: Tensor) -> Tensor:
        """α, 0 or −α."""
        return ternary_weight(weight)


@QUANTISERS.register("xnor")
class Xnor(BinaryWeights):
    """Weights α sign(w) and inputs K sign(x); a batch norm in front, as behind a ReLU all inputs have one sign.

    XNOR-Networks: Rastegari et al., ECCV 2016, sec. 3.2 and figure 3.
    """

    def __init__(self, layer: Layer, *, norm: bool = True):
        super().__init__(layer)
        conv = isinstance(layer, nn.Conv2d)
        made = nn.BatchNorm2d(layer.in_channels) if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d(layer.in_features)
        self.norm: nn.Module = made if norm and (conv or isinstance(layer, nn.Linear)) else nn.Identity()

    def output(self, layer: Layer, x: Tensor) -> Tensor:
        """(sign(x) ∗ sign(w)) · K α, and the bias."""
        x = self.norm(x)
        product = _computed(layer, straight_sign(x), self.weight(layer.weight), None) * xnor_scale(layer, x)
        if layer.bias is None:
            return product
        return product + layer.bias.reshape(-1, *[1] * (2 if isinstance(layer, nn.Conv2d) else 0))


@QUANTISERS.register("dorefa")
class DoReFa(Quantiser):
    """Weights, inputs and gradients of so many bits; 32 leave them as they are.

    DoReFa-Net: Zhou et al. 2016 (arXiv 1606.06160), algorithm 1.
    """

    def __init__(self, layer: Layer, *, weight_bits: int = 1, input_bits: int = 2, gradient_bits: int = 6):
        super().__init__(layer)
        for name, bits in (("weight", weight_bits), ("input", input_bits), ("gradient", gradient_bits)):
            if not 1 <= bits <= 32:
                raise ValueError(f"{name}_bits = {bits}: give 1 … 32")
        self.bits = weight_bits, input_bits, gradient_bits

    def weight(self, weight: Tensor) -> Tensor:
        """Of k bits."""
        return weight if self.bits[0] == 32 else dorefa_weight(weight, self.bits[0])

    def inputs(self, x: Tensor) -> Tensor:
        """Of k bits, in [0, 1]."""
        return x if self.bits[1] == 32 else dorefa_input(x, self.bits[1])

    def output(self, layer: Layer, x: Tensor) -> Tensor:
        """With a gradient of k bits."""
        found = super().output(layer, x)
        return found if self.bits[2] == 32 else with_few_bit_gradient(found, self.bits[2])


@QUANTISERS.register("int8")
class Int8(Quantiser):
    """Weights on the grid of their range, inputs on that of a running one (Jacob et al., CVPR 2018, sec. 3).

    Attributes:
        range: (2,) the inputs' least and greatest value, an exponential moving average.
        seen: batches that it is of.
    """

    range: Tensor
    seen: Tensor
    folds = True  # batch norms go into the layers first

    def __init__(self, layer: Layer, *, bits: int = 8):
        super().__init__(layer)
        if not 2 <= bits <= 16:
            raise ValueError(f"bits = {bits}: give 2 … 16")
        self.bits = bits
        self.register_buffer("range", layer.weight.new_zeros(2))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def weight(self, weight: Tensor) -> Tensor:
        """S (q − Z)."""
        grid = Affine.of(weight.detach().min(), weight.detach().max(), self.bits)
        return grid.real(grid.codes(weight))

    def inputs(self, x: Tensor) -> Tensor:
        """S (q − Z); while it is trained, the range follows. Before it has seen anything, as they are."""
        if self.training:
            now = torch.stack([x.detach().min(), x.detach().max()])
            self.range.copy_(now if int(self.seen) == 0 else DECAY * self.range + (1.0 - DECAY) * now)
            self.seen += 1
        if int(self.seen) == 0:
            return x
        grid = Affine.of(self.range[0], self.range[1], self.bits)
        return grid.real(grid.codes(x))


class Quantised:
    """A layer that computes with what its quantiser makes of the numbers; it is trained in full precision."""

    quantiser: Quantiser

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        return self.quantiser.output(cast(Layer, self), x)


class QuantisedConv1d(Quantised, nn.Conv1d):
    """A convolution over (N, C, L)."""


class QuantisedConv2d(Quantised, nn.Conv2d):
    """A convolution over (N, C, H, W)."""


class QuantisedLinear(Quantised, nn.Linear):
    """A linear layer over (…, inputs)."""


_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: QuantisedConv1d,
    nn.Conv2d: QuantisedConv2d,
    nn.Linear: QuantisedLinear,
}


def quantised(
    model: nn.Module,
    scheme: str,
    *,
    keep: Collection[str] | None = None,
    example: Inputs | None = None,
    **settings: Any,
) -> nn.Module:
    """A copy of a network in which a scheme's numbers are computed with; to be trained by `secateur.networks.fit`.

    Weights of full precision are trained; `state_dict` holds those, under the names they had.

    Args:
        model: with weights; not changed.
        scheme: one of `QUANTISERS`: `bwn`, `xnor`, `twn`, `dorefa`, `int8`.
        keep: modules that stay as they are; none: the first convolution and the last linear layer, as in the papers.
        example: an image (1, C, H, W); where it is given, `int8` folds the batch norms into the layers first.
        settings: of the scheme: the bits of `dorefa` and `int8`.

    Raises:
        ValueError: no such scheme, or setting; no layer to quantise; a name in `keep` that is no layer.
    """
    make, trained, model = QUANTISERS[scheme], model.training, copied(model).eval()
    if example is not None and getattr(make, "folds", False):
        model = fold_batchnorm(model, example)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Layer)}
    if keep is None:
        convolutions = [name for name, layer in layers.items() if isinstance(layer, nn.Conv2d)]
        linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
        keep = [*convolutions[:1], *linear[-1:]]
    if unknown := sorted(set(keep) - set(layers)):
        raise ValueError(f"keep names {unknown[0]!r}, which is no convolution or linear layer here")
    if not set(layers) - set(keep):
        raise ValueError("no layer is left to quantise: keep fewer")
    for name in layers.keys() - set(keep):
        try:
            quantiser = make(layers[name], **settings)
        except TypeError as error:
            raise ValueError(f"scheme {scheme}: {error}") from None
        model.set_submodule(name, with_quantiser(layers[name], quantiser))
    return model.train(trained)


def can_quantise(layer: nn.Module) -> bool:
    """Whether it is of a kind that there is one of which quantises; see `with_quantiser`."""
    return _kind(layer) is not None


def _kind(layer: nn.Module) -> type[nn.Module] | None:
    return next((ours for theirs, ours in _KINDS.items() if type(layer) in (theirs, ours)), None)


def with_quantiser(layer: nn.Module, quantiser: Quantiser) -> nn.Module:
    """The layer as one that quantises, round the same tensors.

    Raises:
        ValueError: it is of a kind that cannot.
    """
    kind = _kind(layer)
    if kind is None:
        known = ", ".join(theirs.__name__ for theirs in _KINDS)
        raise ValueError(f"the inputs of a {type(layer).__name__} cannot be quantised, only of {known}: leave it whole")
    made: Any = kind.__new__(kind)
    made.__dict__.update({**layer.__dict__, "_modules": {}, "_parameters": dict(layer._parameters)})
    made.quantiser = quantiser.to(next(layer.parameters()).device)
    found: nn.Module = made.train(layer.training)
    return found


def _computed(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    found: Tensor = layer._conv_forward(x, weight, bias)
    return found
