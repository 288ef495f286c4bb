"""Reduced-rank regression: the two layers in a row that come nearest to one layer's outputs, on the inputs it sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .gram import variance
from .solve import ridge_solve, ridge_step

SMALL = 1e-12  # of the largest eigenvalue: what is below is rounding
RIDGE = 1e-8  # of the mean square of a feature, each of which has about 1


@dataclass(frozen=True)
class Reduction:
    """Weights V of a form, of every rank, that lower tr((W − V) G (W − V)ᵀ): the square of the outputs that is missed.

    Without a `kernel`, V = B A is of a rank: with U the leading eigenvectors of W G Wᵀ, V = U Uᵀ W is the best there is
    (Izenman, J. Multivariate Analysis 1975; Zhang et al., TPAMI 2016, eq. 7).

    With one, V is a column of weights to a few features and a row from those: of the rank of `matrix` in
    `networks/factors.py`. The features are the best for inputs whose columns of pixels are told apart (G without what
    links them, averaged over the columns); the row is then the best there is for them.

    Attributes:
        target: W, (outputs, inputs), double.
        values: (ranks,) eigenvalues, falling: what each rank explains, exactly so without a kernel.
        left: (rows, ranks) their vectors.
        total: tr(W G Wᵀ).
        kernel: (height, width); the inputs are (height, width, channels).
        gram: G, (inputs, inputs), double, where it is needed again: with a kernel.
    """

    target: Tensor
    values: Tensor
    left: Tensor
    total: float
    kernel: tuple[int, int] | None = None
    gram: Tensor | None = None

    @classmethod
    def of(cls, target: Tensor, gram: Tensor | None, kernel: tuple[int, int] | None = None) -> Reduction:
        """Of weights and the second moments of their inputs; none for the identity (plain SVD)."""
        rows = _by_rank(target, kernel)
        columns = gram if gram is None or kernel is None else _column_gram(gram, kernel)
        values, vectors = torch.linalg.eigh(rows @ rows.T if columns is None else rows @ columns @ rows.T)
        count = min(rows.shape)
        values, left = values.flip(0)[:count].clamp_min(0.0), vectors.flip(1)[:, :count].clone()
        if kernel is None or gram is None:
            return cls(target, values, left, float(values.sum()), kernel)
        return cls(target, values, left, variance(target[None], gram[None]), kernel, gram)

    def at(self, rank: int) -> Tensor:
        """V, (outputs, inputs)."""
        if self.gram is None:
            left = self.left[:, :rank]
            return _as_inputs(left @ (left.T @ _by_rank(self.target, self.kernel)), self.kernel)
        reading = self._reading(rank)
        taken = reading @ self.gram
        inner = taken @ reading.T
        row = ridge_solve(inner, taken @ self.target.T, RIDGE * inner.diagonal().mean())
        return row.T @ reading

    def lost(self, ranks: int) -> Tensor:
        """(ranks,) what is missed at rank 1, 2, …; never rises, and may be a hair below 0."""
        if self.gram is None:
            return self.total - self.values[:ranks].cumsum(0)
        reading = self._reading(ranks)
        taken = reading @ self.gram
        inner = taken @ reading.T
        inner.diagonal().add_(RIDGE * inner.diagonal().mean() + torch.finfo(inner.dtype).tiny)
        factor, _ = torch.linalg.cholesky_ex(inner)
        explained = torch.linalg.solve_triangular(factor, taken @ self.target.T, upper=False).square().sum(1)
        lost: Tensor = self.total - explained.reshape(ranks, -1).sum(1).cumsum(0)
        return lost

    def _reading(self, rank: int) -> Tensor:
        """(rank · width, inputs) what takes the inputs to the features in front of every column of the second layer.

        Of a feature's mean square of 1, about; of one that is rounding, 0.
        """
        assert self.kernel is not None
        height, width = self.kernel
        values = self.values[:rank]
        scale = torch.where(values > SMALL * values[0], values, torch.inf).rsqrt()
        first = scale[:, None] * (self.left[:, :rank].T @ _by_rank(self.target, self.kernel))
        found = first.new_zeros(rank, width, height, width, first.shape[1] // height)
        for column in range(width):
            found[:, column, :, column] = first.reshape(rank, height, -1)
        return found.reshape(rank * width, -1)


def _by_rank(weight: Tensor, kernel: tuple[int, int] | None) -> Tensor:
    """The matrix whose rank is meant: (outputs, inputs), or (outputs · width, height · channels)."""
    if kernel is None:
        return weight
    outputs = weight.shape[0]
    return weight.reshape(outputs, *kernel, -1).transpose(1, 2).reshape(outputs * kernel[1], -1)


def _as_inputs(rows: Tensor, kernel: tuple[int, int] | None) -> Tensor:
    """The inverse of `_by_rank`."""
    if kernel is None:
        return rows
    height, width = kernel
    return rows.reshape(-1, width, height, rows.shape[1] // height).transpose(1, 2).flatten(1)


def _column_gram(gram: Tensor, kernel: tuple[int, int]) -> Tensor:
    """(height · channels, height · channels), the mean over the kernel's columns."""
    height, width = kernel
    channels = len(gram) // (height * width)
    parts = gram.reshape(height, width, channels, height, width, channels)
    return torch.einsum("hwcHwC->hcHC", parts).reshape(height * channels, -1) / width


@dataclass(frozen=True)
class Reduced:
    """A layer that was brought to a rank.

    Attributes:
        target: its dense weights, (outputs, inputs).
        weight: what it has instead, (outputs, inputs).
        rank: of them.
        kernel: as `Reduction` has it.
    """

    target: Tensor
    weight: Tensor
    rank: int
    kernel: tuple[int, int] | None


@dataclass(frozen=True)
class RankSolve:
    """Least squares among the weights of a layer's rank; see `Solve`.

    The ridge is towards the *dense* weights: min ‖T − X V‖² + λ‖V − W‖² over V of the rank. Without that limit the
    minimum is at V₀, and with it the sum is that at V₀ plus tr((V − V₀) (G + λ) (V − V₀)ᵀ): `Reduction` of V₀.

    Attributes:
        layers: module → what it was and is.
    """

    layers: Mapping[str, Reduced]

    def __call__(self, name: str, gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
        """(1, inputs, outputs) the step."""
        layer = self.layers[name]
        dense, now = layer.target.to(gram), layer.weight.to(gram)
        free = dense + ridge_step(gram, cross - gram @ (dense - now).T, ridge)[0].T
        damped = gram[0].clone()
        damped.diagonal().add_(ridge * damped.diagonal().mean())
        return (Reduction.of(free, damped, layer.kernel).at(layer.rank) - now).T.unsqueeze(0)
