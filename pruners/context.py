"""A dense network ready to be compressed in many ways: what depends on it alone is computed once."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..networks.inference import Batches, logits
from ..networks.norms import following_norms
from ..storage.cache import Store, cache_folder, code_of, digest
from ..storage.files import package_versions
from ..training.inputs import leaves, taken
from ..training.objective import Objective, is_built_in
from ..training.tasks import DEFAULT
from .method import METHODS, Method
from .repair.gram import DenseMoments, collect_inputs
from .repair.statistics import Moments, repairable
from .structure import Structure

PROBE = 8  # images that tell what the network's forward does with its weights
STAY = 2**28  # bytes of moments that stay in memory, where they are on disk


@dataclass(frozen=True)
class Context:
    """What a method and its criteria may look at.

    Attributes:
        model: the dense network, in eval mode; never changed.
        structure: its layers.
        calibration: images (N, C, H, W) and labels, in batches; or what else the objective takes.
        criterion: ranks the units inside a layer; "" is the method's own.
        seed: for criteria that draw.
        store: remembers what depends on the network, these images and the objective alone.
        objective: what the network is for.
        given: the moments, where they need no pass of the images.
    """

    model: nn.Module
    structure: Structure
    calibration: Batches
    criterion: str = ""
    seed: int = 0
    store: Store = field(default_factory=Store)
    objective: Objective = DEFAULT
    given: DenseMoments | None = None

    @property
    def method(self) -> Method:
        """That found the layers."""
        return METHODS[self.structure.method]

    @property
    def ranking_criterion(self) -> str:
        """The criterion, or the method's own where none is named."""
        return self.criterion or self.method.criterion

    @cached_property
    def moments(self) -> DenseMoments:
        """Second moments of the consumers' inputs, from one pass of the calibration images."""
        if self.given is not None:
            return self.given
        example = taken(self.calibration[0][0], slice(1))
        device = next(iter(leaves(example).values())).device
        names = [name for name in consumers(self.structure) if repairable(self.model.get_submodule(name))]
        return DenseMoments(_StoredMoments(self, names, device), following_norms(self.model, example))

    def forget_moments(self) -> None:
        """Out of memory, where they are on disk: those of a VGG take 1.2 GB. Whoever asks has them read again."""
        for name in self.__dict__.pop("moments", DenseMoments({}, {})).inputs:
            self.store.forget(f"moments-{name}")

    @cached_property
    def memo(self) -> dict[str, Any]:
        """What is kept for the next call, in this process."""
        return {}


class _StoredMoments(Mapping[str, Moments]):
    """Every consumer's moments, as the store has them; those that are missing are collected in one pass, at once.

    More than `STAY` bytes do not stay: one consumer's are read when they are looked at.
    """

    def __init__(self, context: Context, names: Sequence[str], device: torch.device) -> None:
        self._context, self._names, self._device = context, names, device
        modules: list[Any] = [context.model.get_submodule(name) for name in names]
        sizes = [8 * getattr(module, "groups", 1) * module.weight[0].numel() ** 2 for module in modules]
        self._stay = sum(sizes) <= STAY
        self._last: tuple[str, Moments] | None = None  # whoever looks at one looks twice
        found: dict[str, Moments] = {}
        for name in names:
            if self._stay or not context.store.holds(f"moments-{name}"):
                self._state(name, found)

    def __getitem__(self, name: str) -> Moments:
        if self._last is None or self._last[0] != name:
            self._last = None
            self._last = name, Moments.restored(self._state(name, {}), self._device)
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def _state(self, name: str, found: dict[str, Moments]) -> Mapping[str, Tensor]:
        store = self._context.store
        state = store.get(f"moments-{name}", partial(self._collect, name, found))
        if not self._stay:
            store.forget(f"moments-{name}")
        return state

    def _collect(self, name: str, found: dict[str, Moments]) -> dict[str, Tensor]:
        """Those of a consumer; the first that is asked for brings all that are not in the store, in one pass."""
        if name not in found:
            context = self._context
            missing = [other for other in self._names if other == name or not context.store.holds(f"moments-{other}")]
            found |= collect_inputs(context.model, missing, context.calibration)
        return found.pop(name).state()


def consumers(structure: Structure) -> list[str]:
    """Every module whose output changes where units go, once."""
    return sorted({name for layer in structure.layers for name in layer.consumers})


def dense_store(
    model: nn.Module, structure: Structure, calibration: Batches, seed: int, objective: Objective = DEFAULT
) -> Store:
    """The store of what depends on these alone, under a key of all of them, the code and the versions.

    In memory alone where the objective is the user's own: a key says nothing of other code.
    """
    if not is_built_in(objective):
        return Store()
    return Store(cache_folder() / "dense" / _key(model, structure, calibration, seed, objective))


def _key(model: nn.Module, structure: Structure, calibration: Batches, seed: int, objective: Objective) -> str:
    state = model.state_dict()
    few = [(taken(calibration[0][0], slice(PROBE)), None)]
    probe = logits(model, few)  # two networks of the same weights need not compute the same
    about = {
        "versions": package_versions(),
        "code": _code(METHODS[structure.method]),
        "threads": torch.get_num_threads(),  # sums come out a little different
        "device": str(probe.device),
        "network": [type(model).__name__, list(state), digest(state.values()), digest([probe])],
        "structure": [structure.method, structure.fingerprint, str(structure.input_shape), _told(structure.layers)],
        "calibration": digest(tensor for batch in calibration for tensor in leaves(batch).values()),
        "seed": seed,
        "objective": repr(objective),
    }
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]


def _told(value: Any) -> Any:
    """All that a layer says of itself, as JSON: another grid, or another place of its channels, is another key."""
    if is_dataclass(value):
        return {part.name: _told(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, list | tuple):
        return [_told(part) for part in value]
    if isinstance(value, np.ndarray):
        return digest([torch.from_numpy(value)])
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, str | int | float | None) else type(value).__name__


def _code(method: Method) -> str:
    """Hash of the source that computes what is kept: a key never outlives the code, the package's or a plug-in's."""
    found = hashlib.sha256(code_of("networks", "pruners", "storage", "training").encode())
    for one in getattr(method, "members", (method,)):
        with suppress(TypeError, OSError):  # made where there is no file: in a shell, say
            found.update(inspect.getsource(inspect.getmodule(type(one)) or type(one)).encode())
    return found.hexdigest()
