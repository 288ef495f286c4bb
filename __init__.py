"""secateur learns how much of each layer of a neural network to prune.

`train` an agent for an architecture and get a ratio plan, `apply` the plan, `compare` it with hand-set ratios.
`gymnasium.make("secateur/LayerSparsity-v0", config="digits")` is the environment, for agents of your own.
"""

from __future__ import annotations

import importlib
import warnings
from importlib import metadata
from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from .commands.apply import Applied, apply
    from .commands.chain import Chain, chain
    from .commands.compare import Comparison, compare
    from .commands.correlate import Correlation, correlate
    from .commands.export import Exported, export
    from .commands.filters import Filters, filters
    from .commands.inspect import Inspection, inspect
    from .commands.loading import Images
    from .commands.make_env import make_env
    from .commands.plan import Proposal, plan
    from .commands.report import report
    from .commands.sensitivity import Sensitivity, sensitivity
    from .commands.session import Session
    from .commands.sweep import Sweep, sweep
    from .commands.train import Training, train
    from .configs import Config
    from .pruners.plan import RatioPlan
    from .pruners.saved import load, save
    from .reports.handle import Handle, open_run
    from .training.objective import Objective
    from .training.team import distributed

__version__ = metadata.version("secateur")

ENV_ID = "secateur/LayerSparsity-v0"

if ENV_ID not in gymnasium.registry:  # by name alone: what it is made of is imported when one is made
    gymnasium.register(id=ENV_ID, entry_point="secateur:make_env")

_HOMES = {
    "Applied": ".commands.apply",
    "Chain": ".commands.chain",
    "Comparison": ".commands.compare",
    "Config": ".configs",
    "Correlation": ".commands.correlate",
    "Exported": ".commands.export",
    "Filters": ".commands.filters",
    "Handle": ".reports.handle",
    "Images": ".commands.loading",
    "Inspection": ".commands.inspect",
    "Objective": ".training.objective",
    "Proposal": ".commands.plan",
    "RatioPlan": ".pruners.plan",
    "Sensitivity": ".commands.sensitivity",
    "Session": ".commands.session",
    "Sweep": ".commands.sweep",
    "Training": ".commands.train",
    "apply": ".commands.apply",
    "chain": ".commands.chain",
    "compare": ".commands.compare",
    "correlate": ".commands.correlate",
    "distributed": ".training.team",
    "export": ".commands.export",
    "filters": ".commands.filters",
    "inspect": ".commands.inspect",
    "load": ".pruners.saved",
    "make_env": ".commands.make_env",
    "open_run": ".reports.handle",
    "plan": ".commands.plan",
    "report": ".commands.report",
    "save": ".pruners.saved",
    "sensitivity": ".commands.sensitivity",
    "sweep": ".commands.sweep",
    "train": ".commands.train",
}

__all__ = [
    "ENV_ID",
    "Applied",
    "Chain",
    "Comparison",
    "Config",
    "Correlation",
    "Exported",
    "Filters",
    "Handle",
    "Images",
    "Inspection",
    "Objective",
    "Proposal",
    "RatioPlan",
    "Sensitivity",
    "Session",
    "Sweep",
    "Training",
    "apply",
    "chain",
    "compare",
    "correlate",
    "distributed",
    "export",
    "filters",
    "inspect",
    "load",
    "make_env",
    "open_run",
    "plan",
    "report",
    "save",
    "sensitivity",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import on first use: `secateur --help` should not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with warnings.catch_warnings():  # some libraries add filters when they are imported
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
