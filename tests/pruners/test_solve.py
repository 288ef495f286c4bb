"""One fit: the two kinds of normal equations against each other and against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from secateur.pruners.repair.solve import fit, ridge_step
from secateur.pruners.repair.statistics import Moments, self_product


def problem(samples: int, inputs: int, groups: int = 2, outputs: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs with a mean that is large, targets that a linear map explains in part, and old weights."""
    generator = torch.Generator().manual_seed(samples + inputs)
    x = torch.randn(groups, samples, inputs, generator=generator) + 3.0
    truth = torch.randn(groups, outputs, inputs, generator=generator) / inputs**0.5
    t = x @ truth.transpose(1, 2) + 0.3 * torch.randn(groups, samples, outputs, generator=generator)
    return x, t, (truth + 0.1 * torch.randn(truth.shape, generator=generator)).double()


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize(("samples", "inputs"), [(60, 20), (20, 60), (30, 30), (29, 30), (2, 5)])
@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_it_is_ridge_regression_towards_the_old_weights(
    samples: int, inputs: int, intercept: bool, ridge: float
) -> None:
    x, t, weight = problem(samples, inputs)
    first = samples // 3 or 1
    pairs = [(x[:, :first], t[:, :first]), (x[:, first:], t[:, first:])]
    fitted, constant = fit(pairs, samples, weight, ridge, intercept=intercept)
    for g in range(len(x)):
        a, b, old = x[g].double().numpy(), t[g].double().numpy(), weight[g].numpy()
        mean_a, mean_b = (a.mean(0), b.mean(0)) if intercept else (np.zeros(inputs), np.zeros(b.shape[1]))
        a, b = a - mean_a, b - mean_b
        damp = np.sqrt(ridge * np.square(a).sum(0).mean()) * np.eye(inputs)
        expected = np.linalg.lstsq(np.vstack([a, damp]), np.vstack([b, damp @ old.T]), rcond=None)[0].T
        np.testing.assert_allclose(fitted[g].numpy(), expected, rtol=2e-3, atol=2e-4)
        np.testing.assert_allclose(constant[g].numpy(), mean_b - expected @ mean_a, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("intercept", [False, True])
def test_fewer_samples_than_inputs_give_what_the_moments_give(intercept: bool) -> None:
    x, t, weight = problem(40, 50)
    x[..., 7] = 1e4  # a constant: nothing can be learned from its rounding errors
    x[..., 8] = 0.0
    fitted, constant = fit([(x, t)], 40, weight, 0.5, intercept=intercept)
    moments = Moments()
    moments.add(x, t)
    mean_x, mean_t, xx, xt = moments.centered()
    if not intercept:
        xx, xt = moments.raw()
    expected = weight + ridge_step(xx, xt - xx @ weight.transpose(1, 2), 0.5).transpose(1, 2)
    torch.testing.assert_close(fitted, expected, rtol=1e-3, atol=1e-4)
    if intercept:
        assert torch.equal(fitted[..., 7:9], weight[..., 7:9])
        shift = mean_t - (expected @ mean_x.unsqueeze(2)).squeeze(2)
        torch.testing.assert_close(constant, shift, rtol=1e-3, atol=2.0 * 1e4 * 1e-4)


@pytest.mark.parametrize("samples", [3, 30])
@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan"), 3e38])
def test_what_cannot_be_fitted_keeps_its_weights(samples: int, value: float) -> None:
    _, t, weight = problem(samples, 10)
    fitted, _ = fit([(torch.full((2, samples, 10), value), t)], samples, weight, 1e-3, intercept=True)
    assert torch.equal(fitted, weight)


@pytest.mark.parametrize("inputs", [1, 127, 128, 129, 300, 1100])
def test_a_product_in_strips_is_the_product(inputs: int) -> None:
    x = torch.randn(2, 40, inputs, generator=torch.Generator().manual_seed(0))
    product = self_product(x)
    torch.testing.assert_close(product, x.transpose(1, 2) @ x, rtol=1e-4, atol=1e-4)
    assert torch.equal(product, product.transpose(1, 2))
