"""The Gymnasium environment: what the agent sees, what it may do, what it is paid."""

import gymnasium as gym

from .evaluator import CandidateEvaluator, Evaluation, Evaluator
from .layer_sparsity import LayerSparsityEnv
from .observation import STATIC_FEATURES, WALK_FEATURES, layer_statistics
from .reward import RewardWeights
from .workers.parallel import ParallelEvaluator

ENV_ID = "secateur/LayerSparsity-v0"


def register() -> None:
    """Make the environment known to `gymnasium.make`; gymnasium calls it by itself (entry point `gymnasium.envs`)."""
    if ENV_ID not in gym.registry:
        gym.register(id=ENV_ID, entry_point="secateur:make_env")


register()

__all__ = [
    "ENV_ID",
    "STATIC_FEATURES",
    "WALK_FEATURES",
    "CandidateEvaluator",
    "Evaluation",
    "Evaluator",
    "LayerSparsityEnv",
    "ParallelEvaluator",
    "RewardWeights",
    "layer_statistics",
    "register",
]
