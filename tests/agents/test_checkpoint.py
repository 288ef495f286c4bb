"""A learner that is read back goes on as if it had never stopped; what cannot be used is replayed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from secateur.agents.checkpoint import EVERY, KEPT, Checkpoints
from secateur.agents.learner import ALGORITHMS, Episode, Learner
from secateur.agents.log import EpisodeLog, episode_of
from secateur.configs.schema import AgentConfig
from secateur.envs import LayerSparsityEnv
from secateur.pruners.budget import Budget

EPISODES = 2 * EVERY + 3
STRUCTURE = zoo.structure("digits")


def learner(algorithm: str = "ddpg") -> Learner:
    config = AgentConfig(algorithm=algorithm, episodes=EPISODES, warmup=2, hidden=[8], updates=1, batch_size=16)
    target = zoo.Target(STRUCTURE, STRUCTURE.widths // 2)
    statistics = np.linspace(0, 1, 6, dtype=np.float32)[:, None]
    return Learner(LayerSparsityEnv(Budget(STRUCTURE, "flops", 0.5), target, statistics), config, seed=3)


def walk(agent: Learner, folder: Path, stop: int = EPISODES, settings: str = "") -> list[Episode]:
    """As `train` does: what is there is restored and replayed, what is new is logged and kept."""
    log = EpisodeLog(folder / "episodes.jsonl")
    past = log.read(len(STRUCTURE.layers))
    checkpoints = Checkpoints(agent, log.path, settings)
    checkpoints.restore()
    episodes = [episode_of(record) for record in past[: agent.learnt]]
    for episode in itertools.islice(agent.run([record["actions"] for record in past]), stop - agent.learnt):
        episodes.append(episode)
        if episode.number >= len(past):
            log.append(episode, STRUCTURE)
        checkpoints.save()
    return episodes


def assert_same(first: tuple[Learner, list[Episode]], second: tuple[Learner, list[Episode]]) -> None:
    for ours, theirs in zip(first[1], second[1], strict=True):
        assert np.array_equal(ours.actions, theirs.actions), ours.number
        assert np.array_equal(ours.widths, theirs.widths)
        assert (ours.reward, ours.terms, ours.evaluation) == (theirs.reward, theirs.terms, theirs.evaluation)
    states = [agent.model.policy.state_dict() for agent in (first[0], second[0])]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("learner-*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    agent = learner()
    return agent, walk(agent, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_restored_learner_goes_on_as_the_uninterrupted_one(algorithm, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    uninterrupted = learner(algorithm)
    expected = uninterrupted, walk(uninterrupted, tmp_path / "a")
    walk(learner(algorithm), tmp_path / "b", stop=EVERY + 2)
    resumed = learner(algorithm)
    learnt: list[int] = []
    learn = resumed._learn
    monkeypatch.setattr(resumed, "_learn", lambda number: (learnt.append(number), learn(number)))
    assert_same((resumed, walk(resumed, tmp_path / "b")), expected)
    assert learnt == list(range(EVERY, EPISODES))
    entropies = [getattr(agent.model, "log_ent_coef", torch.zeros(1)) for agent in (resumed, uninterrupted)]
    assert torch.equal(*entropies)
    buffers = [agent.model.replay_buffer for agent in (resumed, uninterrupted)]
    assert np.array_equal(buffers[0].rewards, buffers[1].rewards)
    assert (buffers[0].pos, buffers[0].full) == (buffers[1].pos, buffers[1].full)


def test_the_last_two_are_kept(tmp_path):
    walk(learner(), tmp_path, stop=EVERY - 1)
    assert kept(tmp_path) == []
    walk(learner(), tmp_path)
    assert kept(tmp_path) == sorted(f"learner-{n}.safetensors" for n in (EVERY, 2 * EVERY))
    assert KEPT == 2


@pytest.mark.parametrize("damaged", [[2 * EVERY], [EVERY, 2 * EVERY]])
def test_damaged_ones_are_told_of_and_the_rest_is_replayed(damaged, whole, tmp_path):
    walk(learner(), tmp_path, stop=EPISODES - 1)
    for number in damaged:
        path = tmp_path / f"learner-{number}.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    resumed = learner()
    with pytest.warns(
        RuntimeWarning, match=r"learner-\d+\.safetensors is damaged .*: an older one is taken, or"
    ) as told:
        episodes = walk(resumed, tmp_path)
    assert len(told) == len(damaged)
    assert_same((resumed, episodes), whole)
    assert f"learner-{2 * EVERY}.safetensors" in kept(tmp_path)


def test_one_of_other_settings_or_another_log_is_not_taken(whole, tmp_path):
    walk(learner(), tmp_path, stop=EPISODES - 1)
    log = tmp_path / "episodes.jsonl"
    checkpoints = Checkpoints(learner(), log, "other settings")
    checkpoints.restore()
    assert checkpoints.learner.learnt == 0
    assert kept(tmp_path) == []

    walk(learner(), tmp_path, stop=EPISODES - 1)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    records[EVERY]["reward"] += 1.0  # between the two
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    checkpoints = Checkpoints(learner(), log, "")
    checkpoints.restore()
    assert checkpoints.learner.learnt == EVERY


def test_a_log_that_was_cut_off_makes_newer_ones_void(whole, tmp_path):
    walk(learner(), tmp_path)
    log = tmp_path / "episodes.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[: EVERY + 1]))
    resumed = learner()
    assert_same((resumed, walk(resumed, tmp_path)), whole)


def test_what_is_not_logged_yet_is_not_kept(tmp_path):
    agent = learner()
    list(itertools.islice(agent.run(), EVERY))
    Checkpoints(agent, tmp_path / "episodes.jsonl", "").save()
    assert kept(tmp_path) == []
