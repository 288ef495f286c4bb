"""Workers that are processes of this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import NamedTemporaryFile, gettempdir
from typing import Any, TypeVar

import torch

from .parallel import Key, Outcome, Shared, evaluate_timed, receive, send

T = TypeVar("T")


class Processes:
    """Processes that share the pages of one file: an evaluator, with all that was computed on the dense network, or
    whatever else they work with.

    *Shared*: every worker maps the file into memory, so the images, weights and Gram matrices are there once. Memory
    shared by name or by file descriptor would do the same, but needs a descriptor a tensor (a thousand of them is a
    usual limit, DenseNet's) and room in /dev/shm (64 MB in a usual container).

    *Started* by a fork server, a process that has imported this module and done nothing else. A fork of the parent
    itself would share its tensors with no file at all, but copies one thread of many: a worker of more than one
    thread would wait without end for OpenMP's pool, locks of the progress bar or of TensorBoard may never be released,
    and CUDA does not work. Fresh interpreters do work, but import torch again, for every worker and every one that
    takes a dead one's place.

    *One executor a worker*: an executor is broken as a whole by the death of any of its processes; of this one only
    the candidate is lost that the process had.

    A worker computes what the parent would: the same numbers where both have the same number of threads.

    Args:
        evaluator: what the workers evaluate with.
        threads: torch's, of every worker.

    Attributes:
        file: what every worker maps.

    Raises:
        ValueError: the network cannot be pickled.
    """

    died: type[Exception] = BrokenProcessPool

    def __init__(self, evaluator: Shared, threads: int):
        self._threads = threads
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._shared = NamedTemporaryFile(prefix="secateur-", suffix=".pt")  # noqa: SIM115 – lives until close()
        self.file = self._shared.name
        try:
            send(evaluator, self._shared)
        except BaseException:
            self._shared.close()
            raise

    def hire(self) -> _Process:
        """Another worker, not yet started."""
        return _Process(self._context, self.file, self._threads)

    def close(self) -> None:
        """Delete the file."""
        self._shared.close()


class _Process:
    """One worker."""

    def __init__(self, context: ForkServerContext, file: str, threads: int):
        line, self._line = context.Pipe(duplex=False)
        self._executor = ProcessPoolExecutor(1, context, initializer=_listen, initargs=(line, file))
        self._file = file
        self._threads = threads

    def start(self) -> Future[None]:
        """Done as soon as it can evaluate.

        Raises:
            ValueError: the folder for temporary files has too long a name for the fork server's socket.
        """
        try:
            with _interrupts_held():
                return self._executor.submit(_start, self._file, self._threads)
        except OSError as error:
            if "path too long" not in str(error):
                raise
            raise ValueError(
                f"no worker can be reached below {gettempdir()} ({error}): set TMPDIR to a folder with a short name"
            ) from error

    def evaluate(self, kept: Key) -> Future[Outcome]:
        """A candidate's evaluation to be, and the seconds it took, by part."""
        return self.call(evaluate_timed, kept)

    def call(self, function: Callable[..., T], *given: Any) -> Future[T]:
        """What a function will give there, called with what is shared and this."""
        try:
            return self._executor.submit(_call, function, given)
        except BrokenProcessPool as error:  # it died while it was idle
            broken: Future[T] = Future()
            broken.set_exception(error)
            return broken

    def stop(self) -> None:
        """End it, whatever it is doing and whether it has started or not; also one that is dead."""
        self._line.send("stop")
        self._executor.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """A process started in here never sees a Ctrl-C, which a terminal sends to all; this one sees it afterwards.

    A blocked signal is blocked in the child, too. It reaches this process all the same where other threads run, and a
    process that is left half started would complain of it.
    """
    held: list[int] = []
    here = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, _frame: held.append(number)) if here else None
    resource_tracker.ensure_running()  # it would lift the block when it starts
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if here:
            signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)


_shared: Any  # a worker's own


def _listen(line: Connection, file: str) -> None:
    """Have this process end when its parent says so, or is no more: at once, whatever it is doing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where the fork server was there already, nothing is blocked

    def listen() -> None:
        try:
            line.recv()
        except EOFError:  # killed: nobody else is left to delete the file
            Path(file).unlink(missing_ok=True)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()


def _start(file: str, threads: int) -> None:
    global _shared
    torch.set_num_threads(threads)
    _shared = receive(file, mmap=True)


def _call(function: Callable[..., T], given: tuple[Any, ...]) -> T:
    return function(_shared, *given)
