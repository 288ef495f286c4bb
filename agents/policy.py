"""What training leaves of the agent: its networks and what it learnt of the layers' losses, in one file."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..configs.schema import AgentConfig
from ..envs import LayerSparsityEnv
from ..storage.files import check_finite, read_tensors, write_tensors
from .learner import Learner

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
    """

    config: AgentConfig
    features: list[str]
    fingerprint: str
    factors: NDArray[np.float64]
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, learner: Learner) -> Policy:
        """What a learner has learnt so far, its last episodes among it."""
        learner.env.refit()
        return cls(
            AgentConfig(algorithm=learner.config.algorithm, hidden=learner.config.hidden),
            learner.env.feature_names,
            learner.asked.structure.fingerprint,
            learner.env.loss_model.factors,
            {name: tensor.contiguous().clone() for name, tensor in learner.model.policy.state_dict().items()},
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
            config = AgentConfig.model_validate(
                {"algorithm": about["algorithm"], "hidden": json.loads(about["hidden"])}
            )
            factors = tensors.pop(FACTORS).numpy()
            return cls(config, json.loads(about["features"]), about["fingerprint"], factors, tensors)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} is another version's ({error}): train it anew") from error

    def knows(self, env: LayerSparsityEnv) -> bool:
        """Whether it was trained on this environment's network."""
        return self.fingerprint == env.budget.structure.fingerprint

    def plan(self, env: LayerSparsityEnv) -> NDArray[np.int64]:
        """(layers,) kept for the environment's budget; no candidate is evaluated.

        On the network it was trained on, the loss model has the factors that were learnt there; on another one it is
        as predicted, and only the policy's corrections are carried over.

        Raises:
            ValueError: it was trained on other observations.
        """
        if self.features != env.feature_names:
            odd = sorted(set(self.features) ^ set(env.feature_names))
            raise ValueError(f"the policy was trained on other observations (they differ in {odd}): train it anew")
        if self.knows(env):
            env.set_loss_model(replace(env.loss_model, factors=self.factors))
        learner = Learner(env, self.config, seed=0)
        learner.model.policy.load_state_dict(self.tensors)
        return learner.policy_plan(env.budget.fraction)


def policy_path(path: str | Path) -> Path:
    """The policy's file, given it or its run folder.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path)
    path = path / POLICY_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: give a run folder, or a {POLICY_NAME} that `secateur train` wrote")
    return path
