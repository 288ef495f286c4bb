"""What the first process of a team tells the others, and how they are kept out of its way."""

from __future__ import annotations

import io
import pickle
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import cloudpickle
import torch
from torch import nn
from torch.nn.utils import parametrize

from ..configs.registry import Trusted
from .gradient import Gradient


@dataclass(frozen=True)
class Begin:
    """A training: its gradient, pickled, which kind of device it is on, and torch's threads."""

    pickled: bytes
    device: str
    threads: int

    @classmethod
    def of(cls, gradient: Gradient) -> Begin:
        """Of a training.

        Raises:
            ValueError: the network cannot be pickled, or is on another GPU than this process's own.
        """
        device, file = gradient.parameters[0].device, io.BytesIO()
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            raise ValueError(f"device = {device}: among several processes each has a GPU of its own, set device = cuda")
        try:
            torch.save(
                (Trusted(), gradient), file, pickle_module=SimpleNamespace(__name__="cloudpickle", Pickler=_Pickler)
            )
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise ValueError(
                f"the network cannot be sent to other processes ({error}): train it in one, without accelerate launch"
            ) from error
        return cls(file.getvalue(), device.type, torch.get_num_threads())

    def gradient(self) -> Gradient:
        """On this process's own device."""
        device = (
            torch.device(self.device)
            if self.device == "cpu"
            else torch.device(self.device, torch.cuda.current_device())
        )
        _, found = torch.load(io.BytesIO(self.pickled), map_location=device, weights_only=False)
        assert isinstance(found, Gradient)
        return found


@dataclass(frozen=True)
class Compute:
    """A step.

    Attributes:
        batch: inputs and targets, without their values.
        number: of the step.
        seed: of what is drawn.
        factor: by which the loss is scaled.
    """

    batch: Any
    number: int
    seed: int
    factor: float


@dataclass(frozen=True)
class Exit:
    """The end, with an exit code."""

    code: int


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Of parametrised modules, too (weights of few bits in training), whose own `__getstate__` refuses."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, nn.Module) and parametrize.is_parametrized(obj):
            return _restored, (type(obj), obj.__dict__)
        return super().reducer_override(obj)


def _restored(kind: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    made = kind.__new__(kind)
    made.__dict__.update(state)
    return made


@contextmanager
def elsewhere() -> Iterator[None]:
    """For the length of a block this process does what another one decides: no Ctrl-C, no warnings of its own."""
    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if here else None
    threads = torch.get_num_threads()
    with warnings.catch_warnings(), torch.random.fork_rng(), torch.inference_mode(False), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            if here:
                signal.signal(signal.SIGINT, before or signal.SIG_DFL)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """A Ctrl-C comes when the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
        if held:
            signal.raise_signal(signal.SIGINT)
