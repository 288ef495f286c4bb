"""Images and their splits: calibration, search, test and fine-tuning."""

from .images import Images
from .load import load_splits
from .loaders import TrainLoader, as_batches, check_pixels
from .sources import Source
from .splits import Splits

__all__ = ["Images", "Source", "Splits", "TrainLoader", "as_batches", "check_pixels", "load_splits"]
