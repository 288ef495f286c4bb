"""What many networks have taught of the loss model's errors, for networks that were not among them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from ..pruners.budget import Budget
from ..pruners.context import Context
from ..pruners.loss_model import LossModel
from ..pruners.structure import Floats
from ..storage.files import check_finite, read_tensors, write_tensors
from ..storage.reading import parse_json, validated
from .features import FEATURES, VERSION, base_terms, layer_features

SHIPPED = "correction.safetensors"
FAR = 3.0  # standard deviations from the mean of what was learnt from; beyond, a feature counts as if it were there
MOST_SCALE, MOST_BEND = 2.0, 0.6  # of a factor's logarithm, and of a curve's exponent

Member = Sequence[tuple[Floats, Floats]]
"""(weight (outputs, inputs), bias (outputs,)) of every layer of a small network, tanh in between."""


@dataclass(frozen=True)
class Correction:
    """Curves as predicted, corrected by what their layers' features say.

    A layer's curve c becomes m · e^u · (c / m)^(1 + v): u says by how much the first-order prediction is off, v how
    its error grows with what is lost; m is what the loss model's own plan loses in a layer, in the mean. u and v come
    from the layer's features, by small networks whose answers are averaged. Nothing in it depends on the number of
    layers.

    Attributes:
        centre: (features,) means over the networks that were learnt from.
        scale: (features,) standard deviations.
        members: the small networks; each gives (layers, 2).
        about: what it was made from, for people.
    """

    centre: Floats
    scale: Floats
    members: Sequence[Member]
    about: Mapping[str, str]

    def answers(self, features: Floats) -> tuple[Floats, Floats]:
        """(layers,) u and v of layers with these features (layers, features)."""
        x = np.clip((features - self.centre) / self.scale, -FAR, FAR)
        u, v = np.mean([_forward(member, x) for member in self.members], axis=0).T
        return MOST_SCALE * np.tanh(u), MOST_BEND * np.tanh(v)

    def applied(self, losses: LossModel, features: Floats, budget: Budget) -> LossModel:
        """The loss model with corrected curves, for a budget.

        Args:
            losses: as predicted.
            features: (layers, features) of `layer_features` for the same budget.
            budget: that is asked.
        """
        mean = max(float(base_terms(losses, budget)[1].mean()), np.finfo(float).tiny)
        u, v = self.answers(features)
        curves = [
            mean * np.exp(scale) * (curve / mean) ** (1.0 + bend)
            for curve, scale, bend in zip(losses.curves, u, v, strict=True)
        ]
        return replace(losses, curves=curves)

    def corrected(self, context: Context, budget: Budget) -> LossModel:
        """The loss model of a network, corrected for a budget; no candidate is evaluated."""
        losses = LossModel.of(context)
        return self.applied(losses, layer_features(context, losses, budget), budget)

    def save(self, path: Path) -> None:
        """Write it as safetensors.

        Raises:
            ValueError: a number is NaN or infinite.
        """
        tensors = {"centre": self.centre, "scale": self.scale}
        for number, member in enumerate(self.members):
            for layer, (weight, bias) in enumerate(member):
                tensors |= {f"{number}.{layer}.weight": weight, f"{number}.{layer}.bias": bias}
        ready = {name: torch.from_numpy(np.array(values, dtype=np.float64)) for name, values in tensors.items()}
        check_finite(path, ready)
        depths = [len(member) for member in self.members]
        fixed = {"version": str(VERSION), "features": json.dumps(FEATURES), "members": json.dumps(depths)}
        write_tensors(path, ready, {**self.about, **fixed})

    @classmethod
    def load(cls, path: Path) -> Correction:
        """Read such a file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, holds other than finite numbers, or was learnt from other features.
        """
        tensors, about = read_tensors(path)
        try:
            lists = {name: parse_json(about.pop(name), name) for name in ("features", "members")}
            told = validated(_About, {"version": about.pop("version"), **lists}, "metadata")
            _check(told, tensors)
        except KeyError as error:
            raise ValueError(f"{path} is no correction of loss models (no {error} in it): learn it anew") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}: learn it anew") from None
        values = {name: tensor.numpy() for name, tensor in tensors.items()}
        members = [
            [(values[f"{number}.{layer}.weight"], values[f"{number}.{layer}.bias"]) for layer in range(depth)]
            for number, depth in enumerate(told.members)
        ]
        return cls(values["centre"], values["scale"], members, about)


@cache
def shipped() -> Correction:
    """The one that comes with the package."""
    with resources.as_file(resources.files(__package__).joinpath(SHIPPED)) as path:
        return Correction.load(path)


class _About(BaseModel):
    """The file's metadata."""

    version: str
    features: list[str]
    members: list[Annotated[int, Field(ge=1, le=8)]] = Field(min_length=1, max_length=100)


def _check(told: _About, tensors: Mapping[str, Tensor]) -> None:
    """Whether the tensors are those of small networks on today's features.

    Raises:
        ValueError: they are not.
        KeyError: one is missing.
    """
    if told.version != str(VERSION) or tuple(told.features) != FEATURES:
        odd = sorted(set(told.features) ^ set(FEATURES)) or "their order or meaning"
        raise ValueError(f"it was learnt from version {told.version} of the features, this is {VERSION} ({odd} differ)")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float64 or not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds something else than finite float64 numbers")
    sizes: dict[str, tuple[int, ...]] = {"centre": (len(FEATURES),), "scale": (len(FEATURES),)}
    for number, depth in enumerate(told.members):
        inputs = len(FEATURES)
        for layer in range(depth):
            outputs = 2 if layer == depth - 1 else len(tensors[f"{number}.{layer}.bias"].reshape(-1))
            sizes |= {f"{number}.{layer}.weight": (outputs, inputs), f"{number}.{layer}.bias": (outputs,)}
            inputs = outputs
    for name, size in sizes.items():
        if tuple(tensors[name].shape) != size:
            raise ValueError(f"{name} is {tuple(tensors[name].shape)}, expected {size}")
    if bool((tensors["scale"] <= 0.0).any()):
        raise ValueError("scale holds numbers that are not above 0")


def _forward(member: Member, x: Floats) -> Floats:
    """(layers, 2) a small network's answer to (layers, features)."""
    for number, (weight, bias) in enumerate(member):
        x = x @ weight.T + bias
        x = np.tanh(x) if number < len(member) - 1 else x
    return x
