"""What a training goes on from: one file, replaced after every epoch, that a killed process leaves whole."""

from __future__ import annotations

import hashlib
import json
import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from ..storage.cache import digest
from ..storage.files import read_tensors, write_tensors
from .step import Step


@dataclass(frozen=True)
class Checkpoint:
    """Where a training is kept, and what it is of.

    Attributes:
        path: the file: safetensors, with a SHA-256 of all that it holds.
        of: what is trained, on what, how, by name; the file of anything else is refused.
        needed: whether what cannot be written, or read, is an error; else a warning, and the training does without.
    """

    path: Path
    of: Mapping[str, str] = field(default_factory=dict)
    needed: bool = True

    def write(self, of: Mapping[str, str], tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace the file.

        Raises:
            OSError: it cannot be written.
        """
        about = {"of": json.dumps({**of, **self.of}), "state": json.dumps(state)}
        try:
            write_tensors(self.path, tensors, {**about, "sha256": _sha256(about, tensors)})
        except OSError as error:
            if self.needed:
                raise
            _warn(f"{self.path} cannot be written ({error.strerror}): an interrupted training will start anew")

    def read(self, of: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors, on the CPU, and the state; none where there is no file.

        Raises:
            ValueError: it is damaged, was changed, or is of something else.
        """
        try:
            tensors, about = read_tensors(self.path)
            if about.pop("sha256", None) != _sha256(about, tensors):
                raise ValueError(f"{self.path} was changed (its SHA-256 is another)")
            theirs, ours = json.loads(about["of"]), {**of, **self.of}
            if other := [name for name in (*ours, *theirs) if ours.get(name) != theirs.get(name)]:
                raise ValueError(f"{self.path} is the checkpoint of another training: the {other[0]} differs")
            return tensors, json.loads(about["state"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, OSError) as error:
            remedy = f"{error}; give back what it was begun with, or delete it and the training starts anew"
            if self.needed:
                raise ValueError(remedy) from error
            _warn(f"{error}: not used, and replaced")
            return None

    def remove(self) -> None:
        """Nothing is left to go on with."""
        self.path.unlink(missing_ok=True)


def network_of(model: nn.Module) -> str:
    """What tells a network from another: names, shapes and values of its tensors."""
    state = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}  # not copied
    return hashlib.sha256(f"{list(state)} {digest(state.values())}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Trained:
    """All that changes while a network is trained, as tensors and JSON.

    Attributes:
        model: its parameters and buffers.
        step: whose optimizer and scaler have states, too.
        device: of the network; its random state counts too.
        generators: of the caller's loader, if it has its own.
        average: of the weights, if there is one.
    """

    model: nn.Module
    step: Step
    device: torch.device
    generators: tuple[torch.Generator, ...] = ()
    average: AveragedModel | None = None

    def tensors(self, *, finished: bool) -> dict[str, Tensor]:
        """By name; without the optimizer's where nothing is left to be trained."""
        found = {f"model.{name}": tensor for name, tensor in state_of(self.model).items()}
        if self.average is not None:
            found |= {f"average.{name}": tensor for name, tensor in state_of(self.average).items()}
        found["random.torch"] = torch.get_rng_state()
        if self.device.type == "cuda":
            found["random.cuda"] = torch.cuda.get_rng_state(self.device)
        found |= {f"random.loader.{i}": generator.get_state() for i, generator in enumerate(self.generators)}
        if not finished:
            for name, parameter in self.model.named_parameters():
                for key, value in self.step.optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor):
                        found[f"optimizer.{key}.{name}"] = value.detach().clone()
        return found

    @property
    def scale(self) -> dict[str, Any]:
        """The state of the loss's scaler, for JSON; empty where there is none."""
        return {} if self.step.scaler is None else self.step.scaler.state_dict()

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], scale: Mapping[str, Any]) -> None:
        """In place."""
        load_state(self.model, under("model", tensors))
        if self.average is not None:
            load_state(self.average, under("average", tensors))
        parameters = dict(self.model.named_parameters())
        for path, tensor in under("optimizer", tensors).items():
            key, _, name = path.partition(".")
            here = tensor if key == "step" else torch.empty_like(parameters[name]).copy_(tensor)
            self.step.optimizer.state[parameters[name]][key] = here
        if self.step.scaler is not None:
            self.step.scaler.load_state_dict(dict(scale))
        torch.set_rng_state(tensors["random.torch"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        for i, generator in enumerate(self.generators):
            generator.set_state(tensors[f"random.loader.{i}"])


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of its parameters and buffers, by name."""
    return {name: t.detach().clone() for name, t in model.state_dict().items() if isinstance(t, Tensor)}


@torch.no_grad()
def load_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Set parameters and buffers, in place, to what `state_of` gave."""
    state = model.state_dict()
    for name, tensor in tensors.items():
        state[name].copy_(tensor)


def under(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a part, without it."""
    return {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}


def generators_of(batches: object) -> tuple[torch.Generator, ...]:
    """The random generators that a caller's loader draws from, besides torch's own; each once."""
    if not isinstance(batches, DataLoader):
        return ()
    found = (getattr(part, "generator", None) for part in (batches, batches.sampler))
    return tuple({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def random_states() -> dict[str, Any]:
    """Those of Python and numpy, which a caller's augmentation may draw from."""
    theirs = np.random.get_state(legacy=False)
    assert isinstance(theirs, dict)
    return {"python": random.getstate(), "numpy": _plain(theirs)}


def restore_random_states(states: Mapping[str, Any]) -> None:
    """What `random_states` gave."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    theirs = states["numpy"]
    np.random.set_state({**theirs, "state": {**theirs["state"], "key": np.array(theirs["state"]["key"], np.uint32)}})


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return tree.tolist() if isinstance(tree, np.ndarray | np.generic) else tree


def _sha256(about: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    names = sorted(tensors)
    told = json.dumps([sorted(about.items()), names, digest(tensors[name] for name in names)])
    return hashlib.sha256(told.encode()).hexdigest()


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
