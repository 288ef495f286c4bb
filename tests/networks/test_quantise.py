"""Quantisers against their formulas written out, against brevitas, and as networks that are trained."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import zoo
from secateur.configs.schema import FitConfig
from secateur.networks.quantise.affine import Affine, fixed_point, integer_product, scaled
from secateur.networks.quantise.formulas import binary_weight, dorefa_input, dorefa_weight, ternary_weight, xnor_scale
from secateur.networks.quantise.quantisers import QUANTISERS, QuantisedConv2d, Xnor, quantised
from secateur.networks.quantise.straight import few_bit_gradient, in_steps
from secateur.training.fit import fit

WEIGHT = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))


def test_binary_weights_are_the_closest_of_their_form():
    found = binary_weight(WEIGHT)
    for row, weight in zip(found.numpy().reshape(6, -1), WEIGHT.numpy().reshape(6, -1), strict=True):
        np.testing.assert_allclose(row, np.abs(weight).mean() * np.sign(weight), rtol=1e-6)
        best = np.square(row - weight).sum()
        for alpha in np.linspace(0.0, 2.0, 101):  # no other α, nor any other sign, is closer
            assert np.square(alpha * np.sign(weight) - weight).sum() >= best - 1e-4
        for flip in range(len(weight)):
            other = row.copy()
            other[flip] *= -1
            assert np.square(other - weight).sum() >= best


def test_ternary_weights_are_those_of_the_threshold():
    found = ternary_weight(WEIGHT).numpy().reshape(6, -1)
    for row, weight in zip(found, WEIGHT.numpy().reshape(6, -1), strict=True):
        large = np.abs(weight) > 0.7 * np.abs(weight).mean()
        np.testing.assert_allclose(row, np.where(large, np.abs(weight)[large].mean() * np.sign(weight), 0.0), rtol=1e-6)
    assert bool((ternary_weight(torch.zeros(2, 3)) == 0).all())


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_dorefa_weights_and_inputs(bits: int):
    weight, steps = WEIGHT.double().numpy(), 2**bits - 1
    bent = np.tanh(weight) / (2 * np.abs(np.tanh(weight)).max()) + 0.5
    expected = 2 * np.rint(steps * bent) / steps - 1 if bits > 1 else np.sign(weight) * np.abs(weight).mean()
    np.testing.assert_allclose(dorefa_weight(WEIGHT.double(), bits).numpy(), expected, atol=1e-12)
    x = torch.linspace(-1.0, 2.0, 61, dtype=torch.float64)
    np.testing.assert_allclose(
        dorefa_input(x, bits).numpy(), np.rint(steps * np.clip(x.numpy(), 0, 1)) / steps, atol=1e-12
    )


def test_dorefa_gradients_are_of_few_values_and_right_in_the_mean():
    gradient = torch.randn(2, 5, generator=torch.Generator().manual_seed(1)) * torch.tensor([[1.0], [100.0]])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = torch.stack([few_bit_gradient(gradient, 2) for _ in range(4000)])
    most = gradient.abs().amax(1, keepdim=True)
    values = (drawn / (2 * most) + 0.5) * 3  # eq. 12, solved for quantise_k's codes
    torch.testing.assert_close(values, values.round(), atol=1e-4, rtol=0.0)
    assert bool(((values > -0.1) & (values < 3.1)).all())
    inner = gradient.abs() < 0.6 * most  # noise is clipped at the ends
    torch.testing.assert_close(
        drawn.mean(0)[inner] / most.expand(2, 5)[inner], (gradient / most)[inner], atol=0.03, rtol=0
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_xnor_is_signs_times_the_mean_of_what_is_seen(groups: int):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups)
    x = torch.randn(2, 4, 7, 7)
    found = Xnor(conv, norm=False).output(conv, x)
    patches = F.unfold(x, 3, stride=2, padding=1).reshape(2, groups, 4 // groups * 9, -1)
    signs = F.unfold(torch.where(x >= 0, 1.0, -1.0), 3, stride=2, padding=1).reshape(patches.shape)
    weight = conv.weight.detach().reshape(groups, 6 // groups, -1)
    alpha = weight.abs().mean(2)
    k = patches.abs().mean(2)  # mean |x| of a patch: the box filter over the channels' mean
    product = torch.einsum("gqp,ngpl->ngql", weight.sign(), signs) * alpha[None, :, :, None] * k[:, :, None]
    expected = product.reshape(2, 6, 4, 4) + conv.bias[:, None, None]
    torch.testing.assert_close(found, expected)
    assert xnor_scale(conv, x).shape == (2, 1 if groups == 1 else 6, 4, 4)


def test_gradients_pass_straight():
    weight = torch.tensor([[-2.0, -0.5, 0.2, 0.9]], requires_grad=True)
    ternary_weight(weight).sum().backward()
    assert weight.grad.tolist() == [[1.0] * 4]
    weight.grad = None
    binary_weight(weight).backward(torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    # α's share, sign(w)/n · Σ g sign(w) = 0 here, and α where |w| ≤ 1
    torch.testing.assert_close(weight.grad, torch.tensor([[0.0, 0.0, 0.0, 0.9]]))
    x = torch.tensor([-0.5, 0.3, 1.5], requires_grad=True)
    dorefa_input(x, 2).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 0.0]


@given(low=st.floats(-1e3, 1e3), width=st.floats(1e-3, 1e3), bits=st.integers(2, 8))
def test_an_affine_grid_holds_its_range_and_zero_exactly(low: float, width: float, bits: int):
    ends = torch.tensor([low, low + width], dtype=torch.float64)
    grid = Affine.of(ends[0], ends[1], bits)
    x = torch.linspace(low, low + width, 50, dtype=torch.float64)
    assert float(grid.real(grid.codes(torch.zeros(1, dtype=torch.float64)))) == 0.0
    error = (grid.real(grid.codes(x)) - x).abs().max()
    assert error <= grid.scale * 1.0001  # half a step, and half a one that the nudge of the zero takes at the ends


@given(multiplier=st.floats(1e-9, 0.999), accumulator=st.integers(-(2**31) + 1, 2**31 - 1))
def test_a_multiplier_in_fixed_point_is_exact_to_its_last_bit(multiplier: float, accumulator: int):
    fixed, shift = fixed_point(multiplier)
    assert 2**30 <= fixed < 2**31
    assert abs(math.ldexp(fixed, -31 - shift) - multiplier) <= multiplier * 2**-31
    found = int(scaled(torch.tensor([accumulator]), fixed, shift)[0])
    assert found == (accumulator * fixed * 2 + 2 ** (31 + shift)) // 2 ** (32 + shift)  # in Python's own integers


@given(seed=st.integers(0, 2**31), inputs=st.integers(1, 40))
def test_integers_compute_what_the_floats_on_the_grids_do(seed: int, inputs: int):
    generator = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(n, inputs, generator=generator) for n in (5, 4))
    bias = torch.randn(4, generator=generator)
    x_grid, w_grid = (Affine.of(t.min(), t.max()) for t in (x, weight))
    real = x_grid.real(x_grid.codes(x)).double() @ w_grid.real(w_grid.codes(weight)).double().T + bias.double()
    out = Affine.of(real.min().float(), real.max().float())
    codes = (grid.codes(t).to(torch.int64) for grid, t in ((x_grid, x), (w_grid, weight)))
    found = integer_product(next(codes), x_grid, next(codes), w_grid, bias, out)
    assert found.dtype == torch.int64
    assert int((found - out.codes(real.float())).abs().max()) <= 1  # the bias is rounded, too


@pytest.mark.parametrize("multiplier", [0.0, -1.0, math.inf, math.nan])
def test_a_multiplier_that_is_none_is_refused(multiplier: float):
    with pytest.raises(ValueError, match="is positive"):
        fixed_point(multiplier)


@pytest.mark.parametrize("scheme", QUANTISERS)
def test_a_network_is_trained_by_any_scheme_and_keeps_its_weights(scheme: str):
    model = zoo.make("residual")
    batches = zoo.batches("residual")
    made = quantised(model, scheme, example=zoo.images("residual", 1))
    kinds = [type(module).__name__ for module in made.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert (kinds[0], kinds[-1]) == ("Conv2d", "Linear")
    assert set(kinds[1:-1]) <= {"QuantisedConv2d", "QuantisedLinear"}
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    done = fit(made, batches, FitConfig(epochs=6, learning_rate=0.02), seed=0)
    assert done.epochs[-1]["loss"] < done.epochs[0]["loss"]
    inner = [name for name, module in made.named_modules() if isinstance(module, QuantisedConv2d)]
    assert inner
    for name in inner:
        weight = made.get_submodule(name).weight
        assert not torch.equal(weight, before[f"{name}.weight"])
        few = {"bwn": 2, "xnor": 2, "twn": 3, "dorefa": 2, "int8": 256}[scheme]
        row = made.get_submodule(name).quantiser.weight(weight)[0]
        assert len(row.unique()) <= few < len(weight.unique()) or scheme == "int8"
    assert {name for name, _ in model.named_parameters()} <= set(before) or scheme == "int8"
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), zoo.make("residual").parameters(), strict=True))


def test_int8_knows_no_batch_norm_and_is_next_to_the_dense_network():
    model, images = zoo.make("residual"), zoo.images("residual", 16)
    made = quantised(model, "int8", example=images[:1], keep=())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in made.modules())
    with torch.no_grad():
        made.train()(images)  # ranges are seen
        found, expected = made.eval()(images), model.eval()(images)
    assert float((found - expected).std() / expected.std()) < 0.1


@pytest.mark.parametrize(
    ("scheme", "settings", "message"),
    [
        ("bnw", {}, r"no quantiser 'bnw', only .* – did you mean bwn\?"),
        ("dorefa", {"weight_bits": 0}, r"weight_bits = 0: give 1 … 32"),
        ("int8", {"bits": 33}, r"bits = 33: give 2 … 16"),
        ("bwn", {"bits": 3}, r"scheme bwn: .*bits"),
        ("bwn", {"keep": ["nothing"]}, r"keep names 'nothing', which is no"),
    ],
)
def test_what_is_no_scheme_is_refused(scheme: str, settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        quantised(zoo.make("residual"), scheme, **settings)


def test_brevitas_says_the_same():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("brevitas")
        from brevitas.core.bit_width import BitWidthConst
        from brevitas.core.function_wrapper import Identity
        from brevitas.core.quant import BinaryQuant, IntQuant, TernaryQuant
        from brevitas.core.scaling import ConstScaling

        for row in WEIGHT:
            size = row.abs()
            binary = BinaryQuant(scaling_impl=ConstScaling(float(size.mean())))(row)[0]
            torch.testing.assert_close(binary, binary_weight(row[None])[0])
            delta = 0.7 * float(size.mean())
            alpha = float(size[size > delta].mean())
            ternary = TernaryQuant(scaling_impl=ConstScaling(alpha), threshold=delta / alpha)(row)[0]
            torch.testing.assert_close(ternary, ternary_weight(row[None])[0])
        grid = Affine.of(WEIGHT.min(), WEIGHT.max())
        quant = IntQuant(narrow_range=False, signed=False, input_view_impl=Identity())
        theirs = quant(grid.scale, grid.zero, BitWidthConst(8)(), WEIGHT)
        torch.testing.assert_close(theirs, grid.real(grid.codes(WEIGHT)))
        steps = IntQuant(narrow_range=False, signed=False, input_view_impl=Identity())
        x = torch.linspace(0, 1, 50)
        theirs = steps(torch.tensor(1 / 7), torch.tensor(0.0), BitWidthConst(3)(), x)
        torch.testing.assert_close(theirs, in_steps(x, 3))
