"""The Gymnasium environment: what the agent sees, what it may do, what it is paid."""

import gymnasium as gym

from .evaluator import CandidateEvaluator, Evaluation, Evaluator
from .layer_sparsity import LayerSparsityEnv
from .observation import STATIC_FEATURES, WALK_FEATURES, layer_statistics
from .parallel import ParallelEvaluator
from .reward import RewardWeights

ENV_ID = "secateur/LayerSparsity-v0"

if ENV_ID not in gym.registry:
    gym.register(id=ENV_ID, entry_point="secateur.envs:LayerSparsityEnv")

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
]
