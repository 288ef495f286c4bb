"""A network as everything here wants it: the same function, of modules that can be cut, counted, repaired, followed."""

from __future__ import annotations

from torch import nn

from .attention import open_attention
from .detectors import open_detector
from .own_convolutions import open_convolutions


def opened(model: nn.Module) -> nn.Module:
    """Attention and convolutions that hide what they compute are exchanged for open ones, in place.

    A detector is made one whose heads can be asked (`detectors.py`).

    Parameters keep their names, but for what a standardised weight is computed of, which goes into the weight.

    Args:
        model: with its weights; of a network that is about to be trained, weights would no longer be standardised.

    Returns:
        The network.
    """
    return open_detector(open_convolutions(open_attention(model)))
