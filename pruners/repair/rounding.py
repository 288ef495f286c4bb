"""Weights rounded to few bits, so that what the outputs lose is least.

What they may be are the levels of a tensor: a grid with a scale an output, or values that all its weights share. All
errors are quadratic forms in the second moments of the inputs, H: what an output loses with weights v in place of w is
(v − w) H (v − w)ᵀ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...configs.registry import Registry
from ...networks.quantise.on_grid import GridKind, Grids, Levels
from ...networks.quantise.shared import Values, distinct
from .gram import variance
from .solve import masked_ridge_step, ridge_step
from .statistics import Sampler

BLOCK = 128  # columns that are rounded before the rest of the matrix hears of it
STEPS = 32  # of conjugate gradients, at most

Rounding = Callable[[Tensor, Tensor, Levels], "Rounded"]

ROUNDINGS: Registry[Rounding] = Registry("criterion of bits", adopt=lambda _name, rounding, _known: rounding)


class Rounded(NamedTuple):
    """Weights of few bits.

    Attributes:
        weight: (groups, q, p) on the levels, or 0 where it was, double.
        levels: that they are on.
    """

    weight: Tensor
    levels: Levels


@ROUNDINGS.register("nearest")
def nearest(weight: Tensor, _hessian: Tensor, levels: Levels) -> Rounded:
    """Each weight to the nearest level: the baseline."""
    return Rounded(levels.values(levels.codes(weight)) * (weight != 0.0), levels)


@ROUNDINGS.register("gptq")
def gptq(weight: Tensor, hessian: Tensor, levels: Levels) -> Rounded:
    """Column by column, the columns still to come taking over what one has lost.

    GPTQ: Frantar et al. 2022 (arXiv 2210.17323), algorithm 1, of optimal brain surgery. Values that are shared are then
    solved for, given who shares which.

    Args:
        weight: (groups, q, p), double; one that is zero, pruned, stays zero.
        hessian: (groups, p, p) H, positive definite, double.
        levels: that are fitted to the weights.
    """
    found = by_columns(weight, hessian, levels)
    return with_best_values(weight, hessian, found) if isinstance(levels, Values) else found


def by_columns(weight: Tensor, hessian: Tensor, levels: Levels) -> Rounded:
    """GPTQ on levels that stay as they are.

    With H⁻¹ = Uᵀ U, column j's error over U_jj, times row j of U, is taken from the columns behind. Those that move the
    outputs most come first (act-order). A row that nearest rounding serves better keeps that.
    """
    plain = nearest(weight, hessian, levels)
    order = hessian.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    rows = order.unsqueeze(2).expand_as(hessian)
    ordered = hessian.gather(1, rows).gather(2, rows.transpose(1, 2))
    upper = _inverse_factor(ordered)
    if upper is None:
        return plain
    columns = order.unsqueeze(1).expand_as(weight)
    left = weight.gather(2, columns)
    kept = left != 0.0
    found = torch.empty_like(left)
    for start in range(0, left.shape[2], BLOCK):
        end = min(start + BLOCK, left.shape[2])
        block, errors = left[:, :, start:end], torch.empty_like(left[:, :, start:end])
        inner = upper[:, start:end, start:end]
        for i in range(end - start):
            column = block[:, :, i : i + 1]
            laid = levels.values(levels.codes(column)) * kept[:, :, start + i : start + i + 1]
            found[:, :, start + i : start + i + 1] = laid
            errors[:, :, i : i + 1] = (column - laid) / inner[:, i, i, None, None]
            block[:, :, i + 1 :] -= errors[:, :, i : i + 1] * inner[:, i, None, i + 1 :]
        left[:, :, end:] -= errors @ upper[:, start:end, end:]
    found = torch.empty_like(found).scatter_(2, columns, found)
    better = lost(found - weight, hessian) < lost(plain.weight - weight, hessian)
    return Rounded(torch.where(better.unsqueeze(2), found, plain.weight), levels)


def with_best_values(weight: Tensor, hessian: Tensor, laid: Rounded) -> Rounded:
    """The same weights sharing, at the values that lose least; those of `laid` where rounding errors made them worse.

    What is lost is a quadratic form in the k values c, Σ over outputs of (c[codes] − w) H (c[codes] − w)ᵀ: its normal
    equations are k × k, and solved by conjugate gradients, which never ask for the matrix.

    Args:
        weight: (groups, q, p), double.
        hessian: (groups, p, p) H, positive definite, double.
        laid: on shared values.
    """
    assert isinstance(laid.levels, Values)
    kept, places, start = weight != 0.0, laid.levels.places(laid.weight), laid.levels.table

    def sums(of: Tensor) -> Tensor:
        """(k,) over the weights that share each value."""
        return torch.zeros_like(start).index_add_(0, places.flatten(), (of * kept).flatten())

    def spread(values: Tensor) -> Tensor:
        return values[places] * kept

    scale = sums(hessian.diagonal(dim1=1, dim2=2).unsqueeze(1).expand_as(weight))
    scale = torch.where(scale > 0.0, scale, 1.0)
    values, missing = start.clone(), sums((weight - laid.weight) @ hessian)
    step = missing / scale
    gain = left = missing @ step
    for _ in range(min(len(start), STEPS)):
        pushed = sums(spread(step) @ hessian)
        curvature = step @ pushed
        if not (left > 1e-12 * gain and curvature > 0.0):
            break
        values += left / curvature * step
        missing = missing - left / curvature * pushed
        before, left = left, missing @ (missing / scale)
        step = missing / scale + left / before * step
    values = values.to(laid.levels.dtype).double()
    found = Rounded(spread(values), Values(distinct(values), laid.levels.dtype))
    was, now = (float(lost(of.weight - weight, hessian).sum()) for of in (laid, found))
    return found if now <= was else laid


def rounded(
    weight: Tensor,
    gram: Tensor | None,
    ridge: float,
    bits: int,
    rounding: Rounding,
    dtype: torch.dtype,
    kind: GridKind,
) -> Rounded:
    """Weights on the levels that serve them best.

    Args:
        weight: (groups, q, p), double.
        gram: (groups, p, p) second moments of the inputs; none, or not finite, where they are not known.
        ridge: added to them, relative to the mean squared input, as in a fit.
        bits: of a code.
        rounding: how.
        dtype: that the weights will be stored in; levels are numbers of it.
        kind: of levels.
    """
    if gram is None or not bool(torch.isfinite(gram.sum())):
        gram, rounding = torch.eye(weight.shape[2], dtype=weight.dtype, device=weight.device)[None], nearest
    hessian = gram.expand(len(weight), -1, -1).clone()
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    diagonal += (ridge * diagonal.mean(1, keepdim=True)).clamp_min(torch.finfo(dtype).tiny)
    return rounding(weight, hessian, kind.fitted(weight, bits, diagonal.unsqueeze(1), dtype))


@dataclass(frozen=True)
class GridSolve:
    """The step to the point of the grid at which a fit ends; see `Solve`.

    The fit is that of any step (a ridge towards the dense weights), and its result is rounded by the same moments; so
    what is rounded makes up for what the layers before have lost. Where the inputs alone are rounded, it is the fit.

    Attributes:
        dense: the network whose weights the fit stays near.
        model: the compressed one; its scales are set.
        users: module → the tensor it uses.
        grids: the bits of those that are rounded.
        kind: of grids.
        rounding: how.
    """

    dense: nn.Module
    model: nn.Module
    users: Mapping[str, str]
    grids: Grids
    kind: GridKind
    rounding: Rounding

    def __call__(self, name: str, gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
        """(groups, p, q) the step."""
        tensor, sampler = self.users[name], Sampler(self.model.get_submodule(name))
        parameter = self.model.get_parameter(tensor)
        now = sampler.weight(parameter.detach())
        whole = sampler.weight(self.dense.get_parameter(tensor).detach())
        missing = cross + gram @ (now - whole).transpose(1, 2)
        kept = whole != 0.0  # what is zero was pruned before, and stays so
        free = bool(kept.all())
        step = ridge_step(gram, missing, ridge) if free else masked_ridge_step(gram, missing, ridge, kept)
        wanted = whole + step.transpose(1, 2)
        if tensor in self.grids:
            found = rounded(wanted, gram, ridge, self.grids[tensor], self.rounding, parameter.dtype, self.kind)
            self.kind.keep(self.model, tensor, found.levels.of(parameter.detach()))
            wanted = found.weight
        return (wanted - now).transpose(1, 2)


def losses(
    weight: Tensor, gram: Tensor | None, ridge: float, choices: Sequence[int], dtype: torch.dtype, kind: GridKind
) -> list[float]:
    """1 − R² of the outputs with weights rounded by `gptq`, for every number of bits.

    Of the weights themselves, where the inputs are not known or the outputs never move. Arguments as of `rounded`.
    """
    if gram is None or not variance(weight, gram) > 0.0:
        gram = None
    metric = torch.eye(weight.shape[2], dtype=weight.dtype, device=weight.device)[None] if gram is None else gram
    metric = metric.expand(len(weight), -1, -1)
    total = max(variance(weight, metric), torch.finfo(weight.dtype).tiny)
    return [
        variance(rounded(weight, gram, ridge, bits, gptq, dtype, kind).weight - weight, metric) / total
        for bits in choices
    ]


def lost(error: Tensor, hessian: Tensor) -> Tensor:
    """(groups, q) e H eᵀ of every row: error (groups, q, p), hessian (groups, p, p)."""
    return ((error @ hessian) * error).sum(-1)


def _inverse_factor(hessian: Tensor) -> Tensor | None:
    """U, upper triangular, with H⁻¹ = Uᵀ U; none where H is not positive definite in floating point.

    Of H read backwards, L Lᵀ, both L and the order turned round are R with H = R Rᵀ, and U is R⁻¹: no inverse of H.
    """
    factor, info = torch.linalg.cholesky_ex(hessian.flip(1, 2))
    if bool((info > 0).any()):
        return None
    upper = factor.flip(1, 2)
    eye = torch.eye(hessian.shape[1], dtype=hessian.dtype, device=hessian.device)
    inverse: Tensor = torch.linalg.solve_triangular(upper, eye.expand_as(hessian), upper=True)
    return inverse
