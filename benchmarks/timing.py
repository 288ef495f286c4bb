"""Time of the repairs and of what is computed once, in forward passes of the dense network over the same images.

python benchmarks/timing.py    (random weights and images: time does not depend on what they are)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from common import header, table

from secateur.configs import Repair
from secateur.networks import cifar_resnet
from secateur.networks.inference import Batches, logits
from secateur.pruners import Compressor, Context
from secateur.pruners.channels.coupling import find_layers
from secateur.pruners.channels.criteria import elimination
from secateur.pruners.context import consumers
from secateur.pruners.repair.gram import collect_moments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 32, 56, 110])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(header())
    images = torch.randn(args.images, 3, 32, 32)
    rows = []
    for depth in args.depths:
        model = cifar_resnet(depth).eval()
        structure = find_layers(model, (3, 32, 32))
        batches: Batches = [(batch, torch.zeros(len(batch))) for batch in images.split(100)]
        compressor = Compressor(Context(model, structure, batches, "l1"))
        kept, names = structure.units // 2, consumers(structure)
        moments = compressor.context.moments

        def eliminate(model=model, structure=structure, batches=batches, moments=moments) -> None:
            context = Context(model, structure, batches)
            context.__dict__["moments"] = moments
            for layer in structure.layers:
                elimination(context, layer)

        parts: dict[str, Callable[[], object]] = {
            "dense pass": lambda m=model, b=batches: logits(m, b),
            "sequential": lambda c=compressor, k=kept: c(k, Repair(refit=False)),
            "… producers re-fitted": lambda c=compressor, k=kept: c(k, Repair()),
            "Gram matrices": lambda m=model, n=names, b=batches: collect_moments(m, n, b),
            "elimination orders": eliminate,
            "one Gram repair": lambda c=compressor, k=kept: c(k, Repair(kind="gram", guard=False)),
        }
        seconds = {name: min(measure(part) for _ in range(args.repeats)) for name, part in parts.items()}
        dense = seconds.pop("dense pass")
        once = seconds["Gram matrices"] + seconds["elimination orders"]
        ratios = [f"{value / dense:.2f}" for value in seconds.values()]
        layers = len(structure.layers)
        rows.append([f"ResNet-{depth}", str(layers), f"{dense:.2f}", *ratios, f"{1000 * once / layers:.0f}"])
        head = list(seconds)
    print(f"{args.images} images, half of every layer cut; CPU seconds, the least of {args.repeats}\n")
    print(table(["network", "layers", "dense pass, s", *head, "once, ms a layer"], rows))


def measure(part: Callable[[], object]) -> float:
    start = time.process_time()
    part()
    return time.process_time() - start


if __name__ == "__main__":
    main()
