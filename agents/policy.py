"""What training leaves of the agent: its networks and what it learnt of the layers' losses, in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from torch import Tensor

from ..configs.schema import AgentConfig
from ..envs import LayerSparsityEnv
from ..pruners.budget import Budget
from ..pruners.context import Context
from ..pruners.loss_model import LossModel
from ..storage.files import check_finite, read_tensors, write_tensors
from ..storage.reading import parse_json, validated
from .correction import shipped
from .learner import Learner
from .start import serves

POLICY_NAME = "policy.safetensors"
FACTORS = "loss_model.factors"


@dataclass(frozen=True)
class Policy:
    """A trained agent, ready for any budget, and for any network whose layers have statistics.

    Attributes:
        config: algorithm and layer sizes of its networks.
        features: names of the observation's entries.
        fingerprint: of the layers of the network it was trained on.
        factors: (layers,) of the loss model, for that network.
        tensors: of its networks.
        start: identity of the correction that its loss model began with (`Start`); empty where there was none.
        name: what messages call it: its file, if it comes from one.
    """

    config: AgentConfig
    features: list[str]
    fingerprint: str
    factors: NDArray[np.float64]
    tensors: dict[str, Tensor]
    start: str = ""
    name: str = "the policy"

    @classmethod
    def of(cls, learner: Learner, start: str = "") -> Policy:
        """What a learner has learnt so far, its last episodes among it; `start` as of `Policy`."""
        learner.env.refit()
        return cls(
            AgentConfig(algorithm=learner.config.algorithm, hidden=learner.config.hidden),
            learner.env.feature_names,
            learner.asked.structure.fingerprint,
            learner.env.loss_model.factors,
            {name: tensor.contiguous().clone() for name, tensor in learner.model.policy.state_dict().items()},
            start,
        )

    def save(self, path: Path) -> None:
        """Write it as safetensors.

        Raises:
            ValueError: a weight or a factor is NaN or infinite.
        """
        about = {
            "algorithm": self.config.algorithm,
            "hidden": json.dumps(self.config.hidden),
            "features": json.dumps(self.features),
            "fingerprint": self.fingerprint,
            "start": self.start,
        }
        tensors = {**self.tensors, FACTORS: torch.from_numpy(self.factors)}
        check_finite(path, tensors)
        write_tensors(path, tensors, about)

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read the file, or the one inside a run folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of another version.
        """
        path = policy_path(path)
        tensors, about = read_tensors(path)
        try:
            lists = {name: parse_json(about[name], name) for name in ("hidden", "features")}
            told = validated(_About, {**about, **lists}, "metadata")
            factors = tensors.pop(FACTORS)
            _check_tensors(told, factors, tensors)
        except KeyError as error:
            raise ValueError(f"{path} is another version's (no {error} in it): train it anew") from None
        except ValueError as error:
            raise ValueError(f"{path} is another version's ({error}): train it anew") from None
        config = AgentConfig(algorithm=told.algorithm, hidden=told.hidden)
        return cls(config, told.features, told.fingerprint, factors.numpy(), tensors, told.start, str(path))

    def knows(self, env: LayerSparsityEnv) -> bool:
        """Whether it was trained on this environment's network."""
        return self.fingerprint == env.budget.structure.fingerprint

    def began(self, context: Context, budget: Budget) -> LossModel:
        """What its actions correct, before the factors that it learnt: the loss model as its training began with.

        Args:
            context: of its network, or of another.
            budget: that a plan is asked for.

        Raises:
            ValueError: it began with what this version of the package does not have.
        """
        if not (self.start and serves(context.structure.method)):
            return LossModel.of(context)
        if self.start != shipped().identity:
            raise ValueError(
                f"{self.name} was trained from correction {self.start}, this version has {shipped().identity}: "
                "train it anew"
            )
        return shipped().corrected(context, budget)

    def plan(self, env: LayerSparsityEnv) -> NDArray[np.int64]:
        """(layers,) kept for the environment's budget; no candidate is evaluated.

        The environment's loss model is to be the one that it `began` with. On the network it was trained on, it is
        given the factors that were learnt there; on another one it stays as it is, and only the policy's corrections
        are carried over.

        Raises:
            ValueError: it was trained on other observations, or its networks are not those that its metadata tell of.
        """
        if self.features != env.feature_names:
            odd = sorted(set(self.features) ^ set(env.feature_names))
            raise ValueError(f"{self.name} was trained on other observations (they differ in {odd}): train it anew")
        if self.knows(env):
            if self.factors.shape != env.loss_model.factors.shape:
                layers = len(env.loss_model.factors)
                raise ValueError(f"{self.name} has {len(self.factors)} factors for {layers} layers: train it anew")
            env.set_loss_model(replace(env.loss_model, factors=self.factors))
        learner = Learner(env, self.config, seed=0)
        try:
            learner.model.policy.load_state_dict(self.tensors)
        except RuntimeError as error:  # with a line for every tensor
            raise ValueError(f"{self.name} does not fit: {str(error).splitlines()[1].strip()}; train it anew") from None
        try:
            return learner.policy_plan(env.budget.fraction)
        except ValueError as error:
            raise ValueError(f"{self.name} gives no plan, its numbers are out of all range ({error})") from None


class _About(BaseModel):
    """The file's metadata."""

    algorithm: Literal["ddpg", "td3", "sac"]
    hidden: list[Annotated[int, Field(ge=1)]]
    features: list[str]
    fingerprint: str
    start: str = ""


def _check_tensors(told: _About, factors: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Before networks of that size are made.

    Raises:
        ValueError: something else than numbers, or other sizes than were told.
    """
    for name, tensor in {FACTORS: factors, **tensors}.items():
        if not (tensor.is_floating_point() and bool(torch.isfinite(tensor.float()).all())):
            raise ValueError(f"{name} holds something else than finite numbers")
    if factors.dim() != 1 or factors.dtype != torch.float64:
        raise ValueError(f"{FACTORS} is {factors.dtype} {tuple(factors.shape)}, expected one number a layer")
    if odd := set(told.hidden) - {size for tensor in tensors.values() for size in tensor.shape}:
        raise ValueError(f"hidden = {told.hidden}: no tensor has {min(odd)} rows")


def policy_path(path: str | Path) -> Path:
    """The policy's file, given it or its run folder.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path)
    path = path / POLICY_NAME if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"no {path}: give a run folder, or a {POLICY_NAME} that `secateur train` wrote")
    return path
