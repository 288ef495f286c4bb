"""Who evaluates candidates: this process, several of this machine, or a Ray cluster's."""

from __future__ import annotations

import os
import warnings
from contextlib import AbstractContextManager, nullcontext

import torch

from ..configs import Config
from ..envs import CandidateEvaluator, ParallelEvaluator
from ..envs.workers.processes import Processes
from ..envs.workers.ray import Actors, require_ray

CROWD = 4  # workers, or threads, for every core: what more there are only wait


def check(config: Config, ray_address: str | None, trust_code: bool) -> None:
    """Whether there can be workers, before anything that takes long.

    A cluster's machines answer with pickles, which run code here: none is connected to that only a file names.

    Args:
        config: with the cluster's address, perhaps.
        ray_address: that the user gave.
        trust_code: whether the user trusts what the config names.

    Raises:
        ValueError: the config's address is of a cluster elsewhere, and nobody said that it is trusted.
        ImportError: Ray is asked for and not installed.
    """
    named = config.ray_address
    if named not in (None, "auto", "local") and ray_address is None and not trust_code:
        raise ValueError(
            f"ray_address={named!r} in the config: a cluster can run code here; if you trust it, give "
            f"--ray-address {named} yourself, or --trust-code (in Python: ray_address=, trust_code=True)"
        )
    if ray_address or named:
        require_ray()


def check_threads(config: Config) -> None:
    """Whether this machine can run so many threads; some more than it has cores, at most.

    Raises:
        ValueError: it cannot.
    """
    for key, threads in (("threads", config.threads), ("latency.threads", config.latency.threads)):
        if threads is not None and threads > most():
            raise ValueError(
                f"{key} = {threads}: this machine has {os.cpu_count()} cores, more than {most()} threads only get in "
                f"each other's way; set {key} to that or less"
            )


def most() -> int:
    """Threads, or workers, that a machine is kept busy with."""
    return CROWD * (os.cpu_count() or 1)


def start(
    evaluator: CandidateEvaluator, config: Config, ray_address: str | None
) -> AbstractContextManager[CandidateEvaluator | ParallelEvaluator]:
    """The evaluator, or for the length of a `with` block workers that do as it does; they share what is known.

    Raises:
        ValueError, ImportError, ConnectionError: see `Processes` and `Actors`.
    """
    count, threads = config.workers, config.threads
    address = ray_address or config.ray_address
    if address is not None:
        return ParallelEvaluator(evaluator, Actors(evaluator, threads or 1, count, address), count)
    if count == 1:
        return nullcontext(evaluator)
    started = min(count, most())
    if started < count:
        warnings.warn(
            f"workers = {count}: this machine has {os.cpu_count()} cores, {started} processes share the work (with the "
            "same results); set workers lower, or use more machines (ray_address)",
            RuntimeWarning,
            stacklevel=2,
        )
    share = threads or max(1, torch.get_num_threads() // started)
    return ParallelEvaluator(evaluator, Processes(evaluator, share), started)
