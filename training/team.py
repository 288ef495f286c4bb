"""Several processes, one training: the first does everything, the others compute their part of every batch.

The first runs the command, reads, writes and decides. For every step it sends the batch and the network's weights, all
compute the gradient of their part (`Gradient.of_part`), and the first gets the sum. So one process holds optimizer,
average, schedule and checkpoints, and the numbers are those of one process, up to rounding.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from datetime import timedelta
from importlib.util import find_spec
from typing import Any, TypeVar

import cloudpickle
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from .gradient import Gradient, Scale
from .inputs import Inputs, count, mapped
from .orders import Begin, Compute, Exit, elsewhere, interrupts_held
from .part import LostProcessError, Part, reaching

T = TypeVar("T")

FOREVER = timedelta(days=365)  # that the others wait while the first is not training
PATIENCE = timedelta(seconds=5)  # that a process which failed waits to hear whether the first did, too


def distributed(work: Callable[[], T]) -> T | None:
    """Run something in the first process of a job, with every training of a network in it shared out among all.

    Every process of the job calls it: in a script that `accelerate launch` or `torchrun` started, before or behind
    `accelerate.Accelerator()`, or in a function that torch.multiprocessing spawned, with a process group. Where there
    is one process alone, the work is simply run.

    Args:
        work: called in the first process; the others need not know what it does.

    Returns:
        What the work returns; none in the other processes, which are back when it is done.

    Raises:
        ImportError: several processes were started, no process group is there, and accelerate is not installed.
        SystemExit: in the other processes, where the work ends in an error, or exits.
        RuntimeError: another process ended.
    """
    if current() is not None:
        return work()  # the others follow already
    joined = _join()
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return work()
    team = Team()
    ended_well = True
    try:
        if team.rank == 0:
            return team.lead(work)
        team.follow()
        return None
    except BaseException as error:
        ended_well = isinstance(error, SystemExit) and not error.code
        raise
    finally:
        if ended_well:  # or a group is waited for that has lost a process
            team.close()
            if joined:
                dist.destroy_process_group()


def current() -> Team | None:
    """The team whose first process this is; none outside of `distributed`, and where there is one process alone."""
    return _CURRENT.get()


class Team:
    """The processes of a job.

    Attributes:
        rank: of this one, from 0.
        size: how many there are.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._orders: Any = dist.new_group(backend="gloo", timeout=FOREVER)
        self._cpu: Any = dist.new_group(backend="gloo")

    def close(self) -> None:
        """Of a team that has nothing left to do."""
        for group in (self._orders, self._cpu):
            dist.destroy_process_group(group)

    def lead(self, work: Callable[[], T]) -> T:
        """Run it in the first process; the others are told how it ended."""
        token, code = _CURRENT.set(self), 1
        try:
            found = work()
            self._send(None)
            return found
        except BaseException as error:
            if isinstance(error, SystemExit):
                code = error.code if isinstance(error.code, int) else int(error.code is not None)
            elif isinstance(error, KeyboardInterrupt):
                code = 128 + signal.SIGINT
            with suppress(LostProcessError):
                self._send(Exit(code))
            raise
        finally:
            _CURRENT.reset(token)

    def follow(self) -> None:
        """Compute what the first process asks for, until it is done."""
        gradient: Gradient | None = None
        with elsewhere():
            try:
                while (order := self._received()) is not None:
                    if isinstance(order, Exit):
                        raise SystemExit(order.code)
                    if isinstance(order, Begin):
                        gradient = None  # not two at a time in memory
                        gradient = order.gradient()
                    else:
                        assert gradient is not None
                        self._step(gradient, order)
            except Exception as error:
                self._failed(error)

    def shared(self, gradient: Gradient) -> SharedGradient:
        """The same, computed by all; in the first process."""
        return SharedGradient(gradient, self)

    def begin(self, gradient: Gradient) -> None:
        """The others take part in a training."""
        self._send(Begin.of(gradient))

    def lead_step(self, gradient: Gradient, number: int, inputs: Inputs, targets: Any, scale: Scale | None) -> float:
        """The loss of a batch; its gradient is in the parameters."""
        device = gradient.parameters[0].device
        factor = 1.0 if scale is None else float(scale(torch.ones((), device=device)))
        batch = mapped(lambda tensor: tensor.to("meta"), (inputs, targets))
        self._send(Compute(batch, number, torch.initial_seed(), factor))
        part = self._spread(gradient, inputs, targets)
        return self._summed(part, gradient.parameters, gradient.of_part(part, inputs, targets, scale))

    def _step(self, gradient: Gradient, order: Compute) -> None:
        device = gradient.parameters[0].device
        inputs, targets = mapped(lambda tensor: torch.empty_like(tensor, device=device), order.batch)
        part = self._spread(gradient, inputs, targets)
        drawn = np.random.SeedSequence([order.seed % 2**64, order.number, self.rank]).generate_state(1)
        torch.manual_seed(int(drawn[0]))
        loss = gradient.of_part(part, inputs, targets, lambda loss: loss * order.factor)
        self._summed(part, gradient.parameters, loss)

    @torch.no_grad()
    def _spread(self, gradient: Gradient, inputs: Inputs, targets: Any) -> Part:
        """The first process's batch and weights are everywhere, bit for bit."""
        tensors = [*_tensors((inputs, targets)), *gradient.model.parameters(), *gradient.model.buffers()]
        device = gradient.parameters[0].device
        part = Part(count(inputs), self.rank, self.size, self._cpu if device.type == "cpu" else None)
        sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
        if self.rank == 0:
            sent = torch.cat([_as_bytes(tensor).to(device) for tensor in tensors])
        else:
            sent = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
        with reaching():
            dist.broadcast(sent, src=0, group=part.group)
        for tensor, values in () if self.rank == 0 else zip(tensors, torch.split(sent, sizes), strict=True):
            tensor.copy_(values.clone().view(tensor.dtype).view(tensor.shape))  # a clone lies where its type may
        return part

    @torch.no_grad()
    def _summed(self, part: Part, parameters: Sequence[nn.Parameter], loss: float) -> float:
        """The loss of all parts; the first process has the sum of all gradients, in its parameters."""
        precise = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
        known = torch.tensor([loss, *(p.grad is not None for p in parameters)], dtype=precise)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        sent = torch.cat([known.to(gradients[0].device), *(g.reshape(-1).to(precise) for g in gradients)])
        with reaching():
            dist.reduce(sent, dst=0, group=part.group)
        known, *sums = torch.split(sent, [len(known), *(p.numel() for p in parameters)])
        total, *there = known.tolist()
        for parameter, has, found in zip(parameters, there, sums, strict=True):
            parameter.grad = found.view_as(parameter).to(parameter.dtype) if has else None
        return float(total)

    def _send(self, order: Begin | Compute | Exit | None) -> None:
        told = torch.frombuffer(bytearray(cloudpickle.dumps(order)), dtype=torch.uint8)
        self._broadcast(torch.tensor([len(told)]))
        self._broadcast(told)

    def _received(self, patience: timedelta = FOREVER) -> Any:
        length = torch.zeros(1, dtype=torch.int64)
        self._broadcast(length, patience)
        told = torch.empty(int(length), dtype=torch.uint8)
        self._broadcast(told, patience)
        return pickle.loads(told.numpy().tobytes())

    def _broadcast(self, tensor: Tensor, patience: timedelta = FOREVER) -> None:
        with reaching():
            sending = dist.broadcast(tensor, src=0, group=self._orders, async_op=True)
            assert sending is not None
            sending.wait(patience)

    def _failed(self, error: Exception) -> None:
        """Where another process failed, too, or first, that one says why."""
        with suppress(RuntimeError):
            order = self._received(PATIENCE)
            if isinstance(order, Exit):
                raise SystemExit(order.code)
        if isinstance(error, LostProcessError):
            raise SystemExit(1)
        raise RuntimeError(f"process {self.rank + 1} of {self.size}: {error}") from error


_CURRENT: ContextVar[Team | None] = ContextVar("team", default=None)


class SharedGradient:
    """A `Gradient` that all processes of a team compute; its steps are numbered, for what is drawn in them."""

    def __init__(self, gradient: Gradient, team: Team):
        self._gradient, self._team, self._begun = gradient, team, False

    def __call__(self, inputs: Inputs, targets: Any, scale: Scale | None = None, number: int = 0) -> float:
        """As `Gradient` says. A Ctrl-C waits until the step is done: the others are in the middle of it."""
        with interrupts_held():
            if not self._begun:  # not before the network is in training mode
                self._team.begin(self._gradient)
                self._begun = True
            return self._team.lead_step(self._gradient, number, inputs, targets, scale)


def _tensors(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped(note, tree)
    return found


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _join() -> bool:
    """Make the process group of a job that was launched, where nobody has."""
    if not dist.is_available() or dist.is_initialized() or not {"RANK", "LOCAL_RANK"} <= os.environ.keys():
        return False
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    if find_spec("accelerate") is None:
        raise ImportError("training by several processes needs accelerate: pip install 'secateur[accelerate]'")
    from accelerate import PartialState  # an extra, and a second to import
    from accelerate.utils import parse_flag_from_env

    PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available())
    return True
