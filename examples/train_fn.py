"""A training loop of one's own between cuts: plain PyTorch, handed to `secateur.apply` as `train_fn`.

`python examples/train_fn.py` takes half a minute, and prints top-1 on test images before, one-shot and trained: a small
network on the embedded digits, cut in two rounds to 20 % of its FLOPs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import secateur
from secateur.training.schedules import TrainContext


def fit(model: nn.Module, context: TrainContext) -> None:
    """Trains the network in place: labels, and the dense network's answers; called once a round."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    steps = context.epochs * len(context.train)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=steps)
    model.train()
    for _ in range(context.epochs):
        for images, labels in context.train:
            with torch.no_grad():
                wanted = context.dense(images).softmax(1)
            scores = model(images)
            loss = functional.cross_entropy(scores, labels) + functional.cross_entropy(scores, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            context.hold(model)  # zeros stay zeros, where a plan of single weights has put some


def main(epochs: int = 6, episodes: int = 10) -> dict[str, float]:
    """Top-1 in per cent on the test images: dense, one-shot (pruned and repaired), tuned."""
    overrides = [f"network.pretrain.epochs={2 * epochs}", f"agent.episodes={episodes}", "budget.flops=0.2"]
    session = secateur.Session("digits", overrides=[*overrides, "finetune.rounds=2"])
    with tempfile.TemporaryDirectory() as folder:
        found = secateur.train(session, out=Path(folder) / "run")
        done = secateur.apply(
            found.plan,
            session,
            schedule="iterative",
            finetune=epochs,
            train_fn=fit,
            out=Path(folder) / "small",
        )
    rows = {"dense": "dense", "one-shot": "repaired", "tuned": "pruned"}
    return {name: done.summary[row]["test_accuracy"] for name, row in rows.items()}


if __name__ == "__main__":
    for name, score in main().items():
        print(f"{name:9} top-1 {score:.1f} %")
