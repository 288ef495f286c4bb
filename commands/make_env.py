"""The environment by name: what `gymnasium.make` calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..envs import Evaluation, Evaluator, LayerSparsityEnv
from ..networks.world import undisturbed
from ..pruners import Kept
from .resolve import Given
from .session import Session


@undisturbed()
def make_env(session: Session | Given = None, *, config: Given = None) -> LayerSparsityEnv:
    """The environment of a session, or of what makes one: what `gymnasium.make("secateur/LayerSparsity-v0")` calls.

    Its plans are evaluated with the config's threads, as `train` does; afterwards torch's are the caller's again.

    Args:
        session: a session, a config, its name or its file; none is the embedded default.
        config: the same under another name, for `gymnasium.make(…, config="digits")`.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line.
    """
    session = Session.of(session if session is not None else config)
    env = session.env()
    env.evaluator = _Undisturbing(env.evaluator, session.config.threads)
    return env


class _Undisturbing:
    """An evaluator for somebody else's loop: nothing global is other than before, whenever that goes on."""

    def __init__(self, evaluator: Evaluator, threads: int | None):
        self._evaluator = evaluator
        self._threads = threads

    @property
    def dense(self) -> Evaluation:
        """The dense network's own figures."""
        return self._evaluator.dense

    def evaluate(self, kept: Kept) -> Evaluation:
        """Evaluate the candidate that keeps so many units (layers,)."""
        with undisturbed(self._threads):
            return self._evaluator.evaluate(kept)

    def evaluate_all(self, plans: Sequence[Kept]) -> Iterator[Evaluation]:
        """Evaluate candidates; their evaluations in order, each as soon as it is there."""
        return map(self.evaluate, plans)
