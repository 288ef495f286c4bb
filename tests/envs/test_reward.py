from __future__ import annotations

from secateur.envs import Evaluation, RewardWeights


def test_a_candidate_that_blew_up_is_paid_a_bounded_penalty() -> None:
    terms = RewardWeights(reconstruction=2.0).terms(Evaluation(10.0, 3e38, 0.5, 0.5))
    assert terms == {"accuracy": 0.1, "reconstruction": -20.0, "flops": 0.0}
