"""What is computed once of a dense network, before the first candidate; and the bar over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..agents.start import Start, cold, warm
from ..envs import LayerSparsityEnv, layer_statistics
from ..pruners import Context
from ..reports.progress import Reporter

if TYPE_CHECKING:
    from .session import Session


def set_up(session: Session) -> NDArray[np.float32]:
    """The statistics of a session's layers, its evaluator and its loss model made; read where they were kept."""
    context = session.context
    with _watched(context, session.reporter):
        _ = session.evaluator
        found = layer_statistics(context)
        start_of(session)
    if session.config.repair.search.kind != "gram":
        context.forget_moments()
    return found


def environment(session: Session, statistics: NDArray[np.float32]) -> LayerSparsityEnv:
    """A new one that walks the session's network."""
    losses, penalty = start_of(session).losses, session.config.agent.action_penalty
    return LayerSparsityEnv(
        session.budget, session.evaluator, statistics, session.weights, losses, action_penalty=penalty
    )


def start_of(session: Session) -> Start:
    """What a search of a session begins with; found once for a budget."""
    context, asked = session.context, repr(session.budget.fractions) if session.config.agent.warm_start else ""
    if (key := f"start {asked}") not in context.memo:
        context.memo[key] = warm(context, session.budget) if asked else cold(context)
    start: Start = context.memo[key]
    return start


@contextmanager
def _watched(context: Context, reporter: Reporter) -> Iterator[None]:
    """For the length of the block, what is found in the context's store or put there moves a bar on.

    Its length is that of channels: an order and a sensitivity of every layer, moments of every consumer, and what
    the dense network makes of the search images. Methods that keep less have the rest of the bar at the end.
    """
    layers = context.structure.layers
    names = {"outputs", *(f"{kind}-{layer.name}" for layer in layers for kind in ("obs", "sensitivity"))}
    names |= {f"moments-{name}" for layer in layers for name in layer.consumers}
    with reporter.bar("set-up", len(names)) as advance:

        def there(name: str) -> None:
            step = "outputs" if name.startswith("outputs-") else name
            if step in names:
                names.remove(step)
                advance(step.replace("-", " of ", 1))

        context.store.watch = there
        try:
            yield
        finally:
            context.store.watch = str
        for _ in range(len(names)):
            advance("")
