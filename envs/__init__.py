"""The Gymnasium environment: what the agent sees, what it may do, what it is paid."""

from .evaluator import CandidateEvaluator, Evaluation, Evaluator
from .layer_sparsity import LayerSparsityEnv
from .observation import STATIC_FEATURES, WALK_FEATURES, layer_statistics
from .reward import RewardWeights
from .workers.parallel import ParallelEvaluator

__all__ = [
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
