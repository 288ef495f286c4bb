"""How a check is made: rules one after another, and a message that names the one that is broken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

C = TypeVar("C")


def require(held: object, found: str) -> None:
    """Raises AssertionError with what was found, where a rule does not hold."""
    if not held:
        raise AssertionError(found)


def check_rules(what: str, rules: Mapping[str, Callable[[C], None]], case: C, network: nn.Module | None) -> None:
    """Run all rules; whoever changes the dense network breaks the rule `untouched`, whichever rule was asking.

    Args:
        what: is checked, and where, for the message.
        rules: by name.
        case: what they are told.
        network: the dense one, in the state it must stay in.

    Raises:
        AssertionError: a rule is broken, or the plug-in raised something else.
    """
    before = None if network is None else Snapshot.of(network)
    for name, rule in rules.items():
        broken: AssertionError | None = None
        try:
            rule(case)
        except AssertionError as error:
            broken = AssertionError(f"{what} breaks the rule {name!r}: {error}")
        except Exception as error:
            broken = AssertionError(f"{what} breaks the rule {name!r}: {type(error).__name__}: {error}")
            broken.__cause__ = error
        if before is not None and network is not None and (change := before.change(network)):
            raise AssertionError(
                f"{what} breaks the rule 'untouched': the dense network's {change} (while {name!r} was checked); copy "
                "before you change"
            ) from broken
        if broken is not None:
            raise broken


@dataclass(frozen=True)
class Snapshot:
    """Everything of a network that must stay as it is."""

    state: Mapping[str, Tensor]
    modes: Mapping[str, bool] = field(default_factory=dict)
    trained: Mapping[str, bool] = field(default_factory=dict)
    hooks: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, network: nn.Module) -> Snapshot:
        """Of now."""
        return cls(
            {name: tensor.detach().clone() for name, tensor in network.state_dict().items()},
            {name: module.training for name, module in network.named_modules()},
            {name: parameter.requires_grad for name, parameter in network.named_parameters()},
            {name: _hooks(module) for name, module in network.named_modules()},
        )

    def change(self, network: nn.Module) -> str:
        """The first thing that is not as it was, "" where nothing is."""
        now = Snapshot.of(network)
        if list(now.modes) != list(self.modes) or list(now.state) != list(self.state):
            return "modules or tensors are others"
        for name, tensor in self.state.items():
            if tensor.shape != now.state[name].shape or not torch.equal(tensor, now.state[name]):
                return f"tensor {name} changed"
        for name, mode in self.modes.items():
            if mode != now.modes[name]:
                return f"module {name or 'itself'} went into {'eval' if mode else 'training'} mode"
        if self.trained != now.trained:
            return "parameters changed requires_grad"
        return "modules keep hooks" if self.hooks != now.hooks else ""


def _hooks(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
