"""A network and a task that are pruned and trained in a tenth of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import secateur
from secateur.networks import ChannelPad
from secateur.reports.progress import Reporter
from secateur.storage.files import write_tensors


class Small(nn.Module):
    """Two residual blocks; the first has a shortcut that pads channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.inner1, self.norm1 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.back1, self.pad = nn.Conv2d(8, 8, 3, padding=1), ChannelPad(6, 8, 1)
        self.inner2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.back2, self.out = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = (self.pad(x) + self.back1(self.norm1(self.inner1(x)).relu())).relu()
        x = (x + self.back2(self.norm2(self.inner2(x)).relu())).relu()
        return self.out(x.mean((2, 3)))


class Standardised(nn.Conv2d):
    """A weight that is computed of another at every call."""

    def __init__(self, *arguments: int) -> None:
        super().__init__(*arguments)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, self.gain * weight, self.bias)


def standardised() -> nn.Module:
    layers = (Standardised(1, 6, 3), nn.ReLU(), Standardised(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
    return nn.Sequential(*layers)


class Saying(Reporter):
    """Remembers what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def batches(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Three classes of stripes and noise."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        labels = torch.arange(12) % 3
        images = 0.4 * torch.randn(12, 1, 6, 6, generator=generator)
        for row in range(12):
            images[row, 0, int(labels[row]) :: 3] += 1
        made.append((images, labels))
    return made


def make(
    folder: Path, method: str, *overrides: str, model: nn.Module | None = None, **sections: Any
) -> secateur.Session:
    """Of the network given, or of one that is trained here."""
    torch.manual_seed(3)
    given, model = model, Small()
    file = folder / "initial.safetensors"
    if not file.exists():
        write_tensors(file, {name: tensor.clone() for name, tensor in model.state_dict().items()})
    secateur.networks.fit(model, batches(6, 0), secateur.configs.schema.FitConfig(epochs=2, learning_rate=0.05), seed=0)
    budget = {"flops": 0.5} if method == "channels" else {"params": 0.3}
    tree = {"name": "small", "method": method, "budget": budget, "cache": False, **sections}
    tree["latency"] = {"repeats": 1, "batch": 1}
    tree["finetune"] = {"learning_rate": 0.02, "epochs": 2, "rounds": 2, "initial": str(file)} | sections.get(
        "finetune", {}
    )
    images = secateur.Images(batches(3, 1), batches(3, 2), batches(3, 3), train=batches(3, 4))
    return secateur.Session(
        secateur.Config.model_validate(tree), model=given or model, images=images, overrides=overrides
    )


def plan_of(session: secateur.Session, fraction: float = 0.5) -> secateur.RatioPlan:
    structure = session.structure
    kept = np.array([structure.snap(i, fraction * layer.units) for i, layer in enumerate(structure.layers)])
    return session.plan_of(kept, allocator="uniform", seed=0, candidates=0)
