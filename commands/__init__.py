"""The three things people do: train, apply, compare; in Python, and on the command line."""

from .apply import Applied, apply, load
from .compare import Comparison, compare
from .task import Images
from .train import Training, train

__all__ = ["Applied", "Comparison", "Images", "Training", "apply", "compare", "load", "train"]
