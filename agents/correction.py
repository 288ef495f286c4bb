"""What many networks have taught of the loss model's errors, for networks that were not among them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
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
MOST_BEYOND = 0.02  # of the features of a network's layers, where its word is taken unseen; docs/policy.md
NOTHING = 1e-12  # what the loss model's own plan loses in a layer, from which there is anything to correct
MOST_SCALE, MOST_BEND = 2.0, 0.6  # of a factor's logarithm, and of a curve's exponent
SIZES = {"centre": (len(FEATURES),), "scale": (len(FEATURES),), "weight": (2, len(FEATURES)), "bias": (2,)}


@dataclass(frozen=True)
class Correction:
    """Curves as predicted, corrected by what their layers' features say.

    A layer's curve c becomes m · e^u · (c / m)^(1 + v): u says by how much the first-order prediction is off, v how
    its error grows with what is lost; m is what the loss model's own plan loses in a layer, in the mean. Both are
    linear in the layer's standardised features, and bounded by a tanh. Nothing in it depends on the number of layers.

    Attributes:
        centre: (features,) means over the layers that were learnt from.
        scale: (features,) standard deviations.
        weight: (2, features) of u and v.
        bias: (2,).
        about: what it was made from, for people.
    """

    centre: Floats
    scale: Floats
    weight: Floats
    bias: Floats
    about: Mapping[str, str]

    def answers(self, features: Floats) -> tuple[Floats, Floats]:
        """(layers,) u and v of layers with these features (layers, features)."""
        x = np.clip((features - self.centre) / self.scale, -FAR, FAR)
        u, v = self.weight @ x.T + self.bias[:, None]
        return MOST_SCALE * np.tanh(u), MOST_BEND * np.tanh(v)

    def doubt(self, features: Floats) -> str | None:
        """Why nobody should rely on it for such layers, too unlike those that were learnt from; none where one may.

        What lies beyond `FAR` counts as if it were there: where much does, the answers are no longer what was learnt.

        Args:
            features: (layers, features) of `layer_features`.
        """
        beyond = self.beyond(features)
        if beyond.mean() <= MOST_BEYOND:
            return None
        most = np.argsort(-beyond.mean(axis=0), kind="stable")[:3]
        named = ", ".join(FEATURES[i] for i in most if beyond[:, i].any())
        return f"{100 * beyond.mean():.1f} % of its layers' features are unlike all that was learnt from ({named})"

    def beyond(self, features: Floats) -> NDArray[np.bool_]:
        """(layers, features) which of them lie further out than what was learnt from is taken to tell of."""
        return np.asarray(np.abs((features - self.centre) / self.scale) > FAR)

    @property
    def identity(self) -> str:
        """Of its features' version and of all its numbers."""
        numbers = b"".join(np.asarray(getattr(self, name), dtype=np.float64).tobytes() for name in SIZES)
        return f"{VERSION}-{hashlib.sha256(numbers).hexdigest()[:8]}"

    def __str__(self) -> str:
        networks = len(self.about.get("learnt from", "").split(", "))
        return f"correction {self.identity}, of {self.about.get('plans', '?')} plans of {networks} networks"

    def applied(self, losses: LossModel, features: Floats, budget: Budget) -> LossModel:
        """The loss model with corrected curves, for a budget.

        Args:
            losses: as predicted.
            features: (layers, features) of `layer_features` for the same budget.
            budget: that is asked.
        """
        mean = float(base_terms(losses, budget)[1].mean())
        if mean < NOTHING:
            return losses
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
        ready = {name: torch.from_numpy(np.array(getattr(self, name), dtype=np.float64)) for name in SIZES}
        check_finite(path, ready)
        fixed = {"version": str(VERSION), "features": json.dumps(FEATURES)}
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
            features = parse_json(about.pop("features"), "features")
            told = validated(_About, {"version": about.pop("version"), "features": features}, "metadata")
            _check(told, tensors)
        except KeyError as error:
            raise ValueError(f"{path} is no correction of loss models (no {error} in it): learn it anew") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}: learn it anew") from None
        return cls(about=about, **{name: tensors[name].numpy() for name in SIZES})


@cache
def shipped() -> Correction:
    """The one that comes with the package."""
    with resources.as_file(resources.files(__package__).joinpath(SHIPPED)) as path:
        return Correction.load(path)


class _About(BaseModel):
    """The file's metadata."""

    version: str
    features: list[str]


def _check(told: _About, tensors: Mapping[str, Tensor]) -> None:
    """Whether the tensors are numbers for today's features.

    Raises:
        ValueError: they are not.
        KeyError: one is missing.
    """
    if told.version != str(VERSION) or tuple(told.features) != FEATURES:
        odd = sorted(set(told.features) ^ set(FEATURES)) or "their order or meaning"
        raise ValueError(f"it was learnt from version {told.version} of the features, this is {VERSION} ({odd} differ)")
    for name, size in SIZES.items():
        tensor = tensors[name]
        if tensor.dtype != torch.float64 or not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds something else than finite float64 numbers")
        if tuple(tensor.shape) != size:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {size}")
    if bool((tensors["scale"] <= 0.0).any()):
        raise ValueError("scale holds numbers that are not above 0")
