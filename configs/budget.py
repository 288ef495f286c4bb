"""The section of a config that says what a plan may cost, and what else follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from pydantic import Field, model_validator

from .amounts import Bops, Flops, Latency, Params, Size
from .registry import split
from .scalars import Section

CostKind = Literal["flops", "params", "latency", "size", "bops"]

INPUT_BITS = 8


class BudgetConfig(Section):
    """The most a plan may cost: a fraction of the dense network, or an amount. Of several a plan meets all."""

    flops: Flops | None = Field(default=None, description='0.5, "60%" or "20M" multiply-accumulates an image')
    params: Params | None = Field(default=None, description='0.5, "60%" or "1.5M"')
    latency: Latency | None = Field(
        default=None, description='as measured on this machine, of a batch of latency.batch images: 0.5, "60%" or "5ms"'
    )
    size: Size | None = Field(default=None, description='of the bytes that the weights are stored in: 0.2 or "100kB"')
    bops: Bops | None = Field(default=None, description="multiply-accumulates, times the bits of both factors")

    @model_validator(mode="after")
    def _some(self) -> BudgetConfig:
        if not self.asked:
            known = ", ".join(f"budget.{kind}" for kind in BudgetConfig.model_fields)
            raise ValueError(f"give a budget: one or more of {known}, as a fraction in (0, 1] or an amount")
        return self

    @property
    def asked(self) -> dict[CostKind, float | str]:
        """Kind → a fraction in (0, 1], or an amount with its unit."""
        return cast(dict[CostKind, float | str], self.model_dump(exclude_none=True))


def with_input_bits(given: Any) -> Any:
    """A config as read, with inputs of 8 bits where bit operations are budgeted and it says nothing of inputs.

    A bit operation counts the bits of both factors, and with floats of 32 no hardware that has it computes. A budget of
    `size` is of weights alone: there inputs stay floats, as they do where `activation_bits: null` says so.
    """
    if not isinstance(given, Mapping) or not _spells(given.get("method"), "bits"):
        return given
    budget, layers = (_plain(given.get(section, {})) for section in ("budget", "layers"))
    if not isinstance(budget, Mapping) or budget.get("bops") is None:
        return given
    if not isinstance(layers, Mapping) or "activation_bits" in layers:
        return given
    return {**given, "layers": {**layers, "activation_bits": INPUT_BITS}}


def _plain(section: Any) -> Any:
    """What a section says, as a mapping, where it was made in Python."""
    return section.model_dump(exclude_unset=True) if isinstance(section, Section) else section


def _spells(method: object, name: str) -> bool:
    """Whether a method, or one of two, has that name."""
    return name in (method if isinstance(method, list) else split(method) if isinstance(method, str) else ())
