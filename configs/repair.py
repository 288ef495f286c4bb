"""The sections of a config that say how a network is repaired."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .scalars import Count, Integer, Natural, Section


class Repair(Section):
    """How a network is repaired after it was cut."""

    kind: Literal["none", "gram", "sequential"] = Field(
        default="sequential",
        description="gram: least squares on the dense network's moments (milliseconds); sequential: on the features "
        "that the pruned network really computes (a few passes over the calibration images)",
    )
    images: Count | None = Field(default=None, description="calibration images of a sequential repair; none: all")
    samples: Count = Field(default=64, description="output positions an image that a fit looks at, at most")
    refit: bool = Field(default=True, description="with sequential: re-fit what sits before a cut, too")
    adaptive_bn: Natural = Field(
        default=0, description="calibration images that batch-norm statistics are re-estimated on, 0 for none"
    )
    distill: Annotated[Integer, Field(ge=0, le=1_000)] = Field(
        default=0,
        description="then so many passes of training over the calibration images, shifted and flipped, towards the "
        "dense network's features (no labels), 0 for none",
    )
    guard: bool = Field(default=True, description="never worse than unrepaired: falls back, and says so")


class SearchRepair(Repair):
    """A candidate's: fewer images, and no guard."""

    images: Count | None = 100
    samples: Count = 32
    guard: bool = False

    @model_validator(mode="after")
    def _quick(self) -> SearchRepair:
        if self.distill:
            raise ValueError(
                f"distill={self.distill}: to train every candidate would take too long; set repair.final.distill"
            )
        return self


class RepairConfig(Section):
    """How candidates are repaired while searching, and finished plans in the end."""

    search: SearchRepair = SearchRepair()
    final: Repair = Repair()
