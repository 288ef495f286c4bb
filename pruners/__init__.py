"""How a network is made smaller: methods, costs, budget, loss model, repair, the plan file."""

from . import bits, joint, lowrank, weights  # noqa: F401 – register their methods, and how two are one
from .budget import Budget
from .channels import method as _channels  # noqa: F401 – registers its method
from .compressor import Compressor
from .context import Context, dense_store
from .loss_model import LossModel
from .method import METHODS, Compressed, Method
from .plan import RatioPlan
from .structure import CostModel, Kept, Layer, PlanError, Structure

__all__ = [
    "METHODS",
    "Budget",
    "Compressed",
    "Compressor",
    "Context",
    "CostModel",
    "Kept",
    "Layer",
    "LossModel",
    "Method",
    "PlanError",
    "RatioPlan",
    "Structure",
    "dense_store",
]
