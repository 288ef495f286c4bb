"""One short run on the embedded default, shared by the tests that look at what it wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

import secateur

QUICK = (
    "network.pretrain.epochs=3",
    "data.calibration=100",
    "data.search=100",
    "data.test=100",
    "agent.episodes=6",
    "agent.warmup=2",
    "agent.rerank=3",
    "agent.updates=1",
    "agent.hidden=[16]",
    "finetune.epochs=0",
)


@pytest.fixture(scope="session")
def quick() -> tuple[str, ...]:
    return QUICK


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> secateur.Training:
    folder: Path = tmp_path_factory.mktemp("run") / "digits"
    return secateur.train(secateur.Session("digits", overrides=QUICK), out=folder)
