"""Who trains a comparison's plans: this process, or several of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import nn

from ..envs.workers.processes import Processes
from ..reports.progress import Reporter
from ..training.team import current
from .session import Session
from .trained import Job, Trained, train
from .workers import most


class Trainers:
    """Trains plans: at once, or as many at a time as the config has `workers`, each by one thread's share.

    Rows are the same either way, where a worker has as many threads as one process would. A Ray cluster evaluates
    candidates and trains nothing: it has not this machine's folders. The processes of a team share every training out.

    Use it in a `with` block, at whose end the workers are stopped; what they had begun goes on with `--resume`.
    """

    def __init__(self, session: Session):
        self._session = session
        alone = session.on_cluster or current() is not None
        self._count = 1 if alone else min(session.config.workers, most())
        self._crew: Processes | None = None
        self._hired: list[Any] = []
        self._turn: Iterator[Any] = cycle(self._hired)

    def __enter__(self) -> Trainers:
        return self

    def __exit__(self, *_error: object) -> None:
        for worker, _ in self._hired:
            worker.stop()
        if self._crew is not None:
            self._crew.close()

    def __call__(self, jobs: Sequence[Job], repaired: nn.Module) -> Callable[[], list[Trained]]:
        """Have a plan's network trained; what is returned waits for it, and gives what was found.

        Args:
            jobs: of one plan.
            repaired: its network; not changed.
        """
        if self._count == 1:
            found = [train(self._session, job, repaired) for job in jobs]
            return lambda: found
        begun = [(job, self._begin(job)) for job in jobs if not job.finished]

        def collect() -> list[Trained]:
            for job, futures in begun:
                self._wait(job, futures)
            return [train(self._session, job) for job in jobs]  # each finished: it is read

        return collect

    def _begin(self, job: Job) -> tuple[Future[None], Future[None]]:
        if self._crew is None:
            threads = self._session.config.threads or max(1, torch.get_num_threads() // self._count)
            self._crew = Processes(_Shared.of(self._session), threads)
            for _ in range(self._count):
                worker = self._crew.hire()
                self._hired.append((worker, worker.start()))
        worker, started = next(self._turn)
        return started, worker.call(_train, job)

    @staticmethod
    def _wait(job: Job, futures: Sequence[Future[None]]) -> None:
        try:
            for future in futures:
                future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"a worker died while it trained {job.folder.name}: if memory ran out, lower workers or "
                f"finetune.batch_size; what is finished is kept in {job.home} (--resume)"
            ) from error


@dataclass(frozen=True)
class _Shared:
    """A session for workers; it says nothing."""

    session: Session

    @classmethod
    def of(cls, session: Session) -> _Shared:
        quiet = session.beside()
        quiet.reporter = Reporter()
        return cls(quiet)

    def prepare(self) -> None:
        """Rank layers and decode images here, once."""
        _ = self.session.compressor
        if self.session.train_loader is not None:
            self.session.train_loader(self.session.config.finetune.batch_size)


def _train(shared: _Shared, job: Job) -> None:
    train(shared.session, job)
