"""Workers that are actors of a Ray cluster: on many machines, or on this one."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import torch

from ..evaluator import CandidateEvaluator
from .parallel import Key, Outcome, evaluate_timed, receive, send


def require_ray() -> None:
    """Find out now rather than when there is something to evaluate.

    Raises:
        ImportError: Ray is not installed; the extra is named.
    """
    if find_spec("ray") is None:
        raise ImportError("workers at a Ray address need ray: pip install 'secateur[ray]'")


class Actors:
    """Actors, to which the evaluator is sent through the cluster's object store: once, however many they are.

    Ray puts an actor where there is room. One that died, with its node or alone, is replaced by a new one, on another
    node if need be; until there is room for it the others go on without. secateur must be installed on every node.

    Args:
        evaluator: what the workers evaluate with.
        threads: torch's, and the CPUs that Ray reserves, of every worker; and a GPU if the network is on one.
        workers: how many there will be.
        address: of a cluster: `auto`, `host:port`; or `local`, which starts one for as long as it is needed.

    Raises:
        ImportError: Ray is not installed; the extra is named.
        ConnectionError: there is no cluster at this address.
        ValueError: no worker fits the cluster, or the network cannot be pickled.
    """

    died: type[Exception]

    def __init__(self, evaluator: CandidateEvaluator, threads: int, workers: int, address: str):
        require_ray()
        import ray  # an extra, and seconds to import

        self._ray: Any = ray
        self.died = ray.exceptions.RayActorError
        self._threads = threads
        self._connected_here = not ray.is_initialized()
        if self._connected_here:
            room = {"num_cpus": workers * threads, "include_dashboard": False} if address == "local" else {}
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **room)
        cpus = ray.cluster_resources().get("CPU", 0.0)
        if cpus < threads:
            self.close()
            raise ValueError(f"a worker needs threads = {threads} CPUs, the Ray cluster has {cpus:g}: lower threads")
        content = BytesIO()
        send(evaluator, content)
        gpus = int(next(evaluator.compressor.dense.parameters()).is_cuda)
        self._actor = ray.remote(num_cpus=threads, num_gpus=gpus)(_Remote)
        self._evaluator = ray.put(content.getvalue())

    def hire(self) -> _Actor:
        """Another worker, not yet started."""
        return _Actor(self._ray, self._actor.remote(), self._evaluator, self._threads)

    def close(self) -> None:
        """Leave the cluster, or end it if it was started here."""
        if self._connected_here:
            self._ray.shutdown()


class _Actor:
    """One worker, as seen from here."""

    def __init__(self, ray: Any, actor: Any, evaluator: Any, threads: int):
        self._ray = ray
        self._actor = actor
        self._evaluator = evaluator
        self._threads = threads

    def start(self) -> Future[None]:
        """Done as soon as it can evaluate."""
        return _outcome(self._actor.start.remote(self._evaluator, self._threads))

    def evaluate(self, kept: Key) -> Future[Outcome]:
        """A candidate's evaluation to be, and the seconds it took, by part."""
        return _outcome(self._actor.evaluate.remote(kept))

    def stop(self) -> None:
        """End it, whatever it is doing and whether it has started or not; also one that is dead."""
        self._ray.kill(self._actor)


class _Remote:
    """The same one, where it works."""

    def start(self, evaluator: bytes, threads: int) -> None:
        torch.set_num_threads(threads)
        self._evaluator = receive(BytesIO(evaluator))

    def evaluate(self, kept: Key) -> Outcome:
        return evaluate_timed(self._evaluator, kept)


def _outcome(reference: Any) -> Future[Any]:
    """A remote call's; if it raised, with what was raised there, without the page that Ray writes round it."""
    outcome: Future[Any] = Future()

    def settle(done: Future[Any]) -> None:
        error = done.exception()
        if error is None:
            outcome.set_result(done.result())
        else:
            outcome.set_exception(getattr(error, "cause", None) or error)

    reference.future().add_done_callback(settle)
    return outcome
