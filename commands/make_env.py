"""The environment by name: what `gymnasium.make` calls."""

from __future__ import annotations

from ..envs import LayerSparsityEnv
from ..networks.world import undisturbed
from .resolve import Given
from .session import Session


@undisturbed()
def make_env(session: Session | Given = None, *, config: Given = None) -> LayerSparsityEnv:
    """The environment of a session, or of what makes one: what `gymnasium.make("secateur/LayerSparsity-v0")` calls.

    torch's threads are the caller's: the config's count for commands, not for steps in somebody else's loop.

    Args:
        session: a session, a config, its name or its file; none is the embedded default.
        config: the same under another name, for `gymnasium.make(…, config="digits")`.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line.
    """
    return Session.of(session if session is not None else config).env()
