"""Binary, ternary and few-bit networks after the same short training from the dense weights.

python benchmarks/quantisers.py --data DIR [--steps 1000]    (an hour or two on a CPU)

`--data DIR` holds `cifar10/` and `weights/`. Every scheme of `networks/quantise` takes the trained ResNet's weights;
the first convolution and the last linear layer stay float. It trains for as many steps of 128 images with SGD, and is
measured on the test images. `dense` is trained as long. No integer kernel is run: the networks compute with floats
that hold the numbers that one would. `int8` has its batch norms folded, and diverges at the others' learning rate: its
own is a twentieth.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from common import cifar_session, header, table
from torch import nn

from secateur import Session
from secateur.configs.schema import FitConfig
from secateur.networks import fit
from secateur.networks.inference import accuracy
from secateur.networks.quantise.quantisers import quantised

SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "int8": ("int8", {}),
    "TWN": ("twn", {}),
    "BWN": ("bwn", {}),
    "DoReFa W2 A4": ("dorefa", {"weight_bits": 2, "input_bits": 4, "gradient_bits": 32}),
    "DoReFa W1 A2 G6": ("dorefa", {"weight_bits": 1, "input_bits": 2, "gradient_bits": 6}),
    "XNOR": ("xnor", {}),
}

SLOWER = {"int8": 0.05}  # of the learning rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--schemes", nargs="+", default=["dense", *SCHEMES])
    args = parser.parse_args()
    torch.set_num_threads(1)
    session = cifar_session(args.depth, args.data, "threads=1")
    assert session.test is not None
    images = sum(len(labels) for _, labels in session.test)
    rows = []
    for name in args.schemes:
        model, before = made(session, name), ""
        if name != "dense":
            before = f"{accuracy(model, session.test):.2f}"
        trained(session, model, args.steps, args.rate * SLOWER.get(name, 1.0))
        before = before or f"{accuracy(session.model, session.test):.2f}"
        rows.append([name, before, f"{accuracy(model, session.test):.2f}"])
        print(*rows[-1], flush=True)
    print("\n" + header())
    print(table([f"ResNet-{args.depth}, {images:,} test images", "not trained", f"{args.steps} steps"], rows))


def made(session: Session, name: str) -> nn.Module:
    """The scheme's network; its batch norms and ranges are those of the dense one, where it has any."""
    if name == "dense":
        return quantised(session.model, "dorefa", weight_bits=32, input_bits=32, gradient_bits=32)
    scheme, settings = SCHEMES[name]
    return quantised(session.model, scheme, example=session.calibration[0][0][:1], **settings)


def trained(session: Session, model: nn.Module, steps: int, rate: float) -> None:
    assert session.train_loader is not None
    loader = session.train_loader(128, 0)

    def endless() -> Any:
        while True:
            yield from loader

    fit(model, _Some(endless, steps), FitConfig(epochs=1, learning_rate=rate), seed=0)


class _Some:
    """So many batches of an endless walk, as one epoch."""

    def __init__(self, walk: Any, steps: int):
        self.walk, self.steps = walk, steps

    def __iter__(self) -> Any:
        return islice(self.walk(), self.steps)

    def __len__(self) -> int:
        return self.steps


if __name__ == "__main__":
    main()
