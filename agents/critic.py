"""A critic that knows what an action itself costs and learns the rest."""

from __future__ import annotations

from stable_baselines3.common.policies import BasePolicy, ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor


class PenalisedCritic(ContinuousCritic):
    """Q(s, a) = network(s, a) − action_penalty · a².

    The last term is part of what is paid, and exactly known. A network that had to learn it from the small actions of
    the exploration would take it for a slope, and a policy that climbs such a slope ends at the range's edge.
    """

    action_penalty: float

    def forward(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, ...]:
        """The networks' values, each (N, 1), of observations (N, features) and actions (N, 1)."""
        cost = self.action_penalty * actions.square()
        return tuple(value - cost for value in super().forward(obs, actions))

    def q1_forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """The first network's, which the policy climbs."""
        return super().q1_forward(obs, actions) - self.action_penalty * actions.square()


def with_penalty(policy: type[BasePolicy], action_penalty: float) -> type[BasePolicy]:
    """SB3's policy for DDPG, TD3 or SAC with such critics."""

    class Policy(policy):  # type: ignore[misc, valid-type]  # one of three, as asked
        def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> PenalisedCritic:
            critic = PenalisedCritic(**self._update_features_extractor(self.critic_kwargs, features_extractor))
            critic.action_penalty = action_penalty
            return critic.to(self.device)

    return Policy
