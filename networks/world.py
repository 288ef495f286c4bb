"""What is global in torch, numpy and Python, left as the caller had it."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterator

import numpy as np
import torch

_CUDNN = ("enabled", "benchmark", "deterministic")


@contextlib.contextmanager
def undisturbed(threads: int | None = None) -> Iterator[None]:
    """For the length of a block, or of the function it decorates: afterwards nothing global is other than before.

    Random states, torch's threads, default type, determinism and cuDNN's switches, and the filters of warnings, after
    errors and Ctrl-C too. Inside, gradients can be computed wherever they are asked for, also where the caller has
    turned them off.

    Args:
        threads: torch's inside; none leaves them. Whoever decorates a function may set them within it.
    """
    python, legacy = random.getstate(), np.random.get_state()
    before, dtype = torch.get_num_threads(), torch.get_default_dtype()
    cudnn = {name: getattr(torch.backends.cudnn, name) for name in _CUDNN}
    strict, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if used else []
    with (
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        try:
            use_threads(threads)
            yield
        finally:
            torch.set_num_threads(before)
            torch.set_default_dtype(dtype)
            torch.use_deterministic_algorithms(strict, warn_only=warn_only)
            for name, value in cudnn.items():
                setattr(torch.backends.cudnn, name, value)
            np.random.set_state(legacy)
            random.setstate(python)


def use_threads(threads: int | None) -> None:
    """So many of torch's; none leaves them."""
    if threads is not None:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def without_fast_attention() -> Iterator[None]:
    """For the length of a block attention is computed operation by operation: fused kernels cannot be looked into."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
