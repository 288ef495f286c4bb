"""Numbers from a signal: a small one-dimensional network learns two of them, and is pruned to 60 % of its FLOPs.

`python examples/regression.py` takes half a minute, and prints R² on test signals before, one-shot and fine-tuned.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import secateur
from secateur.configs.schema import FitConfig
from secateur.training.fit import fit
from secateur.training.tasks import Regression

LENGTH = 64


def signals(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of noisy waves (20, 1, 64), and of each its frequency and amplitude (20, 2)."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.linspace(0, 6.28, LENGTH)
    batches = []
    for _ in range(count // 20):
        frequency, amplitude, phase = torch.rand(3, 20, 1, generator=generator)
        waves = (0.5 + amplitude) * torch.sin((2 + 8 * frequency) * time + 6.28 * phase)
        noise = 0.1 * torch.randn(20, LENGTH, generator=generator)
        batches.append(((waves + noise).unsqueeze(1), torch.cat([frequency, amplitude], dim=1)))
    return batches


class Meter(nn.Module):
    """Convolutions along the signal, and a mean over it."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            convolution = nn.Conv1d(inputs, outputs, 7, stride, padding=3, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm1d(outputs), nn.ReLU())

        self.body = nn.Sequential(block(1, 24, 1), block(24, 32, 2), block(32, 32, 2))
        self.out = nn.Linear(32, 2)

    def forward(self, waves: Tensor) -> Tensor:
        """(N, 1, T) to (N, 2)."""
        return self.out(self.body(waves).mean(2))


def main(epochs: int = 12, episodes: int = 10) -> dict[str, float]:
    """R² in per cent on the test signals: dense, one-shot (pruned and repaired), tuned."""
    torch.manual_seed(0)
    network, train = Meter(), signals(800, seed=0)
    fit(network, train, FitConfig(epochs=epochs, learning_rate=0.05), seed=0, objective=Regression())
    images = secateur.Images(
        calibration=signals(100, seed=1), search=signals(100, seed=2), test=signals(200, seed=3), train=train
    )
    config = secateur.Config.model_validate(
        {
            "name": "regression",
            "objective": "regression",
            "budget": {"flops": 0.6},
            "agent": {"episodes": episodes},
            "finetune": {"epochs": max(1, epochs // 2), "learning_rate": 0.02},
        }
    )
    session = secateur.Session(config, model=network, images=images)
    with tempfile.TemporaryDirectory() as folder:
        found = secateur.train(session, out=Path(folder) / "run")
        done = secateur.apply(found.plan, session, out=Path(folder) / "small")
    rows = {"dense": "dense", "one-shot": "repaired", "tuned": "pruned"}
    return {name: done.summary[row]["test_accuracy"] for name, row in rows.items()}


if __name__ == "__main__":
    for name, score in main().items():
        print(f"{name:9} R² {score:.1f} %")
