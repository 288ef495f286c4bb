"""secateur learns how much of each layer of a neural network to prune.

`train` an agent for an architecture and get a ratio plan, `apply` the plan, `compare` it with hand-set ratios.
"""

from importlib import metadata

from .commands import Applied, Comparison, Images, Training, apply, compare, load, train
from .pruners.plan import RatioPlan

__version__ = metadata.version("secateur")

__all__ = ["Applied", "Comparison", "Images", "RatioPlan", "Training", "apply", "compare", "load", "train"]
