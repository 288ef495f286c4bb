"""A training loop of one's own between cuts, Lightning's: handed to `secateur.apply` as `train_fn`.

`pip install lightning`, then `python examples/lightning_fit.py`: a minute, and it prints top-1 on test images before,
one-shot and trained. A small network on the embedded digits keeps 20 % of its FLOPs. A plain loop is `train_fn.py`.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional

import secateur
from secateur.training.schedules import TrainContext


class Tuning(lightning.LightningModule):
    """The smaller network, learning from labels and from the dense network's answers."""

    def __init__(self, model: nn.Module, context: TrainContext):
        super().__init__()
        self.model = model
        self.context = context  # no module: the dense network in it is neither trained nor saved

    def training_step(self, batch: tuple[Tensor, Tensor], _number: int) -> Tensor:
        """A batch's loss."""
        images, labels = batch
        with torch.no_grad():
            wanted = self.context.dense(images).softmax(1)
        scores = self.model(images)
        return functional.cross_entropy(scores, labels) + functional.cross_entropy(scores, wanted)

    def on_train_batch_end(self, *_given: Any) -> None:
        """Zeros stay zeros, where a plan of single weights has put some."""
        self.context.hold(self.model)

    def configure_optimizers(self) -> dict[str, Any]:
        """SGD, its rate up and down over all steps."""
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
        steps = self.context.epochs * len(self.context.train)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


def fit(model: nn.Module, context: TrainContext) -> None:
    """Trains the network in place; called once a round. Where to train and on how much is for the Trainer to say."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # which devices there are, and tips
    trainer = lightning.Trainer(
        max_epochs=context.epochs,
        accelerator=next(model.parameters()).device.type,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=context.folder,
    )
    model.train()
    trainer.fit(Tuning(model, context), context.train)


def main(epochs: int = 6, episodes: int = 10) -> dict[str, float]:
    """Top-1 in per cent on the test images: dense, one-shot (pruned and repaired), tuned."""
    overrides = [f"network.pretrain.epochs={2 * epochs}", f"agent.episodes={episodes}", "budget.flops=0.2"]
    session = secateur.Session("digits", overrides=overrides)
    with tempfile.TemporaryDirectory() as folder:
        found = secateur.train(session, out=Path(folder) / "run")
        done = secateur.apply(found.plan, session, finetune=epochs, train_fn=fit, out=Path(folder) / "small")
    rows = {"dense": "dense", "one-shot": "repaired", "tuned": "pruned"}
    return {name: done.summary[row]["test_accuracy"] for name, row in rows.items()}


if __name__ == "__main__":
    for name, score in main().items():
        print(f"{name:9} top-1 {score:.1f} %")
