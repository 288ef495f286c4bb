"""The learner on disk: a run that goes on need not learn again what it had learnt."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ..pruners.files import read_tensors, write_tensors
from ..pruners.plan import package_versions
from .learner import Learner

EVERY = 5  # episodes; one is written in a hundredth of the time that they take
KEPT = 2  # the last but one takes the place of one that is damaged

_BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class Checkpoints:
    """`learner-N.safetensors` in a run folder: networks, optimizers and replay buffer after N episodes.

    Randomness is drawn anew from (seed, episode), so that is all there is. A checkpoint holds for the settings and the
    log it was made with; with any other, and where both are damaged, the log is replayed from the start. So it only
    saves time, and decides nothing.

    Attributes:
        learner: that is saved and restored.
        log: the run's episodes.
        settings: what the learner was made from.
    """

    def __init__(self, learner: Learner, log: Path, settings: str):
        self.learner = learner
        self.log = log
        self.settings = settings

    def save(self) -> None:
        """Write one, unless the last is not old yet or not all that was learnt from is logged.

        Raises:
            OSError: the disk is full, or the like.
        """
        episodes = self.learner.learnt
        if episodes < max(self._found(), default=0) + EVERY or len(self._lines(episodes)) < episodes:
            return
        write_tensors(self._path(episodes), _state(self.learner), {"key": self._key(episodes)})
        for number in self._found()[KEPT:]:
            self._path(number).unlink(missing_ok=True)

    def restore(self) -> None:
        """Bring the learner to where the newest checkpoint has it, or leave it; those that do not hold are removed."""
        for number in self._found():
            try:
                state, about = read_tensors(self._path(number))
            except ValueError as error:
                warnings.warn(f"{error}: an older one is taken, or the log is replayed", RuntimeWarning, stacklevel=2)
            else:
                if about.get("key") == self._key(number):
                    _restore(self.learner, state)
                    return
            self._path(number).unlink()

    def _found(self) -> list[int]:
        """Numbers of episodes, the newest first."""
        names = (path.stem.removeprefix("learner-") for path in self.log.parent.glob("learner-*.safetensors"))
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def _path(self, episodes: int) -> Path:
        return self.log.with_name(f"learner-{episodes}.safetensors")

    def _lines(self, episodes: int) -> list[bytes]:
        return self.log.read_bytes().splitlines(keepends=True)[:episodes] if self.log.is_file() else []

    def _key(self, episodes: int) -> str:
        lines = self._lines(episodes)
        about = f"{len(lines)}\n{package_versions()}\n{self.settings}\n"
        return hashlib.sha256(b"".join([about.encode(), *lines])).hexdigest()


def _state(learner: Learner) -> dict[str, Tensor]:
    model, buffer = learner.model, learner.model.replay_buffer
    assert buffer is not None
    state = {
        "learnt": torch.tensor(learner.learnt),
        "baseline": torch.tensor(learner.baseline, dtype=torch.float64),
        "updates": torch.tensor(model._n_updates),
        "buffer/pos": torch.tensor(buffer.pos),
        "buffer/full": torch.tensor(buffer.full),
        **{f"buffer/{name}": torch.from_numpy(getattr(buffer, name)[: buffer.size()]) for name in _BUFFER},
    }
    if isinstance(entropy := getattr(model, "log_ent_coef", None), Tensor):  # SAC's
        state["log_ent_coef"] = entropy
    for part, values in model.get_parameters().items():
        if "state" not in values:
            state |= {f"{part}/{name}": tensor for name, tensor in values.items()}
            continue
        for index, moments in values["state"].items():
            state |= {f"{part}/{index}/{name}": tensor for name, tensor in moments.items()}
    return state


def _restore(learner: Learner, state: dict[str, Tensor]) -> None:
    model, buffer = learner.model, learner.model.replay_buffer
    assert buffer is not None
    learner.learnt = int(state["learnt"])
    learner.baseline = float(state["baseline"])
    model._n_updates = int(state["updates"])
    rows = len(state["buffer/rewards"])
    for name in _BUFFER:
        getattr(buffer, name)[:rows] = state[f"buffer/{name}"].numpy()
    buffer.pos, buffer.full = int(state["buffer/pos"]), bool(state["buffer/full"])
    if "log_ent_coef" in state:
        model.log_ent_coef.data.copy_(state["log_ent_coef"])  # type: ignore[attr-defined]
    parameters = model.get_parameters()
    for part, values in parameters.items():
        own = {name.removeprefix(f"{part}/"): tensor for name, tensor in state.items() if name.startswith(f"{part}/")}
        if "state" not in values:
            parameters[part] = own
            continue
        values["state"] = {}
        for name, tensor in own.items():
            index, moment = name.split("/")
            values["state"].setdefault(int(index), {})[moment] = tensor
    model.set_parameters(parameters, exact_match=True)  # type: ignore[arg-type]  # SB3's says flat, and takes nested
