"""The sections of a config that say how a network is trained: before it is pruned, and after."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .scalars import Batch, Count, Epochs, File, Fraction, Number, Section, Weight

Part = Annotated[Number, Field(ge=0.0, lt=1.0)]


class FitConfig(Section):
    """An optimizer, its learning rate over the steps, and what else a training is made of."""

    epochs: Epochs = 0
    learning_rate: Annotated[Number, Field(gt=0.0)] = 0.01
    momentum: Part = Field(default=0.9, description="of SGD; the first beta of AdamW")
    weight_decay: Weight = 5e-4
    batch_size: Batch = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    nesterov: bool = Field(default=True, description="with SGD that has momentum")
    decay: Literal["cosine", "constant"] = Field(default="cosine", description="of the learning rate, to 0")
    warmup: Weight = Field(default=0.0, description="epochs, or parts of one, in which the learning rate rises first")
    clip: Annotated[Number, Field(gt=0.0)] | None = Field(default=None, description="the most of the gradient's norm")
    label_smoothing: Part = Field(default=0.0, description="cross-entropy's")
    mixup: Weight = Field(default=0.0, description="alpha of mixup (Zhang et al. 2018), 0 for none; cross-entropy")
    cutmix: Weight = Field(default=0.0, description="alpha of CutMix (Yun et al. 2019); with mixup: one of the two")
    ema: Part = Field(default=0.0, description="decay of the average of the weights that is kept in the end, 0: none")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="of the forward pass (torch.amp); float16 on a GPU only"
    )
    channels_last: bool = Field(
        default=False,
        description="a pixel's channels lie together in memory: faster, for networks that never `view` feature maps",
    )
    keep_epoch: Epochs | None = Field(
        default=None, description="pretraining: weights after this epoch are kept for the schedule rewind"
    )


class DistillConfig(Section):
    """What is learnt from the dense network while a smaller one is fine-tuned (Hinton, Vinyals & Dean 2015)."""

    weight: Annotated[Number, Field(ge=0.0, le=1.0)] = Field(
        default=0.5, description="of the dense network's outputs in the loss, the targets have the rest; 0 for none"
    )
    temperature: Annotated[Number, Field(gt=0.0, le=1_000.0)] = Field(default=4.0, description="of class scores")
    hints: Weight = Field(
        default=0.0, description="weight of the features' distance at the layers that were cut (Romero et al. 2015)"
    )


class FinetuneConfig(FitConfig):
    """Training after the cut."""

    keep: Literal["best", "last"] = Field(default="best", description="epoch: the best on the search images, or last")
    distill: DistillConfig = DistillConfig()
    schedule: str = Field(
        default="one_shot", description="one_shot, iterative, gradual, rewind, scratch_e, scratch_b, or a plug-in's"
    )
    rounds: Annotated[Count, Field(le=1_000)] | None = Field(
        default=None, description="cuts of iterative (none: 3) and rewind (none: 1), which share the epochs"
    )
    spacing: Literal["linear", "geometric"] = Field(
        default="linear", description="a round removes as many units as the others, or the same part of what is left"
    )
    floor: Annotated[Number, Field(ge=0.0, le=100.0)] | None = Field(
        default=None, description="the least measure on the search images: rounds stop below, the one before is kept"
    )
    initial: File | None = Field(default=None, description="weights that rewind goes back to")


class GradualConfig(Section):
    """Compression while fine-tuning, by the cubic schedule of Zhu & Gupta (2018)."""

    ramp: Fraction = Field(default=2 / 3, description="part of the training in which the sparsity rises, then constant")
    every: Count = Field(default=10, description="steps between two renewals of the masks")
