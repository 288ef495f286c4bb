"""Candidates evaluated some at a time: by processes of this machine, or by actors of a Ray cluster.

What is parallel are the candidates, not the environments. A walk takes milliseconds and only its end is dear, so
vectorised environments (SB3's `SubprocVecEnv`) would meet after every layer for nothing, copy the budget and the
statistics to every process, and serve the learner alone. Here the environment stays one, and whoever has several
plans to evaluate hands them over together: the learner a group of episodes, random search its draws, an evolutionary
search its generation.
"""

from __future__ import annotations

import pickle
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import IO, Any, Protocol

import cloudpickle
import numpy as np
import torch
from numpy.typing import NDArray

from ...configs.registry import Trusted
from ..evaluator import CandidateEvaluator, Evaluation

DEATHS = 3  # workers that a candidate may end

Key = tuple[int, ...]
Outcome = tuple[Evaluation, dict[str, float]]


class Worker(Protocol):
    """Evaluates candidates elsewhere, one at a time."""

    def start(self) -> Future[None]:
        """Done as soon as it can evaluate."""
        ...

    def evaluate(self, kept: Key) -> Future[Outcome]:
        """A candidate's evaluation to be, and the seconds it took, by part."""
        ...

    def stop(self) -> None:
        """End it, whatever it is doing and whether it has started or not; also one that is dead."""
        ...


class Crew(Protocol):
    """Makes workers that evaluate as one evaluator does.

    Attributes:
        died: what the futures of a worker that is no more raise.
    """

    died: type[Exception]

    def hire(self) -> Worker:
        """Another worker, not yet started."""
        ...

    def close(self) -> None:
        """Give back what the workers shared; they have been stopped."""
        ...


class ParallelEvaluator:
    """Evaluates by several workers at a time; a dead worker's candidate is evaluated again by another, with a warning.

    Workers are hired when there is something to evaluate, and stay until the end of the `with` block.

    Attributes:
        known: kept → evaluation of everything evaluated so far: the evaluator's own.
    """

    def __init__(self, evaluator: CandidateEvaluator, crew: Crew, workers: int):
        self.known = evaluator.known
        self._evaluator = evaluator
        self._crew = crew
        self._workers = workers
        self._hired: list[Worker] = []
        self._idle: list[Worker] = []
        self._busy: dict[Future[Any], tuple[Worker, Key | None]] = {}  # with a candidate, or none yet: starting
        self._deaths: Counter[Key | None] = Counter()
        self._seconds: Counter[str] = Counter()

    def __enter__(self) -> ParallelEvaluator:
        return self

    def __exit__(self, *_error: object) -> None:
        for worker in self._hired:
            worker.stop()
        self._crew.close()

    @property
    def dense(self) -> Evaluation:
        """The dense network's own figures."""
        return self._evaluator.dense

    @property
    def seconds(self) -> Mapping[str, float]:
        """Time spent so far, by part, all workers' together."""
        return {part: seconds + self._seconds[part] for part, seconds in self._evaluator.seconds.items()}

    def evaluate(self, kept: NDArray[np.int64]) -> Evaluation:
        """Evaluate the candidate that keeps so many units (layers,)."""
        return next(self.evaluate_all([kept]))

    def evaluate_all(self, plans: Sequence[NDArray[np.int64]]) -> Iterator[Evaluation]:
        """Evaluate candidates, none twice; their evaluations in order, each as soon as it is there.

        Raises:
            RuntimeError: three workers in a row died of the same candidate, or while starting.
        """
        keys = [tuple(int(count) for count in kept) for kept in plans]
        waiting = deque(dict.fromkeys(key for key in keys if key not in self.known))
        for key in keys:
            while key not in self.known:
                self._assign(waiting)
                self._collect(waiting)
            yield self.known[key]

    def _assign(self, waiting: deque[Key]) -> None:
        """Give idle workers something to evaluate, and hire for what is left."""
        while waiting and self._idle:
            worker, key = self._idle.pop(), waiting.popleft()
            self._busy[worker.evaluate(key)] = worker, key
        starting = sum(key is None for _, key in self._busy.values())
        for _ in range(min(len(waiting) - starting, self._workers - len(self._busy))):
            worker = self._crew.hire()
            self._hired.append(worker)  # before it starts: it is to be stopped, whenever an interrupt comes
            self._busy[worker.start()] = worker, None

    def _collect(self, waiting: deque[Key]) -> None:
        """Wait until a worker is done, and take down what was found; what a dead one left goes to the front."""
        for future in wait(self._busy, return_when=FIRST_COMPLETED).done:
            worker, key = self._busy.pop(future)
            try:
                outcome = future.result()
            except Exception as error:
                worker.stop()
                self._hired.remove(worker)
                if not isinstance(error, self._crew.died):
                    raise
                self._count_death(key, error)
                if key is not None:
                    waiting.appendleft(key)
                continue
            self._deaths.pop(key, None)
            self._idle.append(worker)
            if key is not None:
                self.known[key], seconds = outcome
                self._seconds.update(seconds)

    def _count_death(self, key: Key | None, error: Exception) -> None:
        self._deaths[key] += 1
        if self._deaths[key] < DEATHS:
            what = "while starting" if key is None else f"of the plan with kept {list(key)}, which is evaluated again"
            warnings.warn(f"a worker died {what}", RuntimeWarning, stacklevel=4)
            return
        if key is None:
            raise RuntimeError(
                f"{DEATHS} workers in a row died while starting: what they wrote says why; a script that asks for "
                'workers does so below `if __name__ == "__main__":`'
            ) from error
        raise RuntimeError(
            f"{DEATHS} workers in a row died of the plan with kept {list(key)}: if memory ran out, lower workers, "
            "data.batch_size or repair.search.images"
        ) from error


class Shared(Protocol):
    """What workers share: an evaluator, or whatever else works on the dense network."""

    def prepare(self) -> None:
        """Compute what all of them need."""
        ...


def send(evaluator: Shared, file: IO[bytes]) -> None:
    """Write an evaluator, with all that was computed on the dense network, for workers to `receive`.

    Raises:
        ValueError: the network cannot be pickled.
    """
    evaluator.prepare()
    try:
        torch.save((Trusted(), evaluator), file, pickle_module=cloudpickle)  # classes of a script or notebook, too
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise ValueError(f"the network cannot be sent to workers ({error}): set workers to 1") from error
    file.flush()


def receive(file: str | IO[bytes], **options: Any) -> Any:
    """What was sent; options as `torch.load` takes them."""
    _, evaluator = torch.load(file, weights_only=False, **options)
    return evaluator


def evaluate_timed(evaluator: CandidateEvaluator, kept: Key) -> Outcome:
    """What a worker does for a candidate."""
    before = evaluator.seconds
    evaluation = evaluator.evaluate(np.array(kept, dtype=np.int64))
    return evaluation, {part: seconds - before[part] for part, seconds in evaluator.seconds.items()}
