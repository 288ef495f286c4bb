"""What is computed once of a dense network, before the first candidate; and the bar over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..envs import layer_statistics
from ..pruners import Context, LossModel
from ..reports.progress import Reporter

if TYPE_CHECKING:
    from .session import Session


def set_up(session: Session) -> tuple[NDArray[np.float32], LossModel]:
    """The layers' statistics and the loss model of a session, its evaluator made; read where they were kept."""
    context = session.context
    with _watched(context, session.reporter):
        _ = session.evaluator
        found = layer_statistics(context), LossModel.of(context)
    if session.config.repair.search.kind != "gram":
        context.forget_moments()
    return found


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
