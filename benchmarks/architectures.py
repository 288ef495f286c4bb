"""Whether networks of every kind can be cut: torchvision's and timm's, with random weights.

python benchmarks/architectures.py --data DIR                      (the table in docs/measured/architectures.md)
python benchmarks/architectures.py --data DIR timm:repvgg_a0       (others; `NAME,all` cuts residual trunks, too)

Weights are drawn for rectifiers, branches that begin switched off are on, batch-norm statistics are those of images. A
quarter of every layer goes at random (`--kept`; a third of the heads), and is repaired on 64 images (`--images`);
distances from the dense network are on as many others, squared, over the variance of its outputs. The images are
CIFAR-10's, enlarged: of smooth noise, where no image has anything in common with another, 64 say nothing of the next
64, and a network that is fitted to them ends further off. Every row is a process of its own, so that its memory is its
own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import cifar_config, header, table
from torch import Tensor, nn

import secateur
from secateur.configs.schema import FitConfig, NetworkConfig, ObjectiveConfig
from secateur.data.load import load_splits
from secateur.data.loaders import normalise
from secateur.networks import build_network
from secateur.networks.graph import UntraceableError
from secateur.networks.opened import opened
from secateur.pruners.channels.coupling import find_layers
from secateur.pruners.channels.method import cut
from secateur.pruners.channels.shrink import mask
from secateur.pruners.channels.slices import ChannelStructure, Selection
from secateur.pruners.repair.batchnorm import adapt_batchnorm
from secateur.pruners.repair.gram import collect_moments, repair_from_moments
from secateur.pruners.repair.sequential import SequentialRepair
from secateur.pruners.saved import save_network

TORCHVISION = "alexnet vgg16_bn resnet18 resnet50 resnext50_32x4d densenet121 squeezenet1_1 googlenet mobilenet_v2 "
TORCHVISION += "mobilenet_v3_small shufflenet_v2_x1_0 mnasnet1_0 efficientnet_b0 regnet_x_400mf convnext_tiny "
TORCHVISION += "vit_b_16 swin_t"
TIMM = "resnet18d seresnet18 ghostnet_100 repvgg_a0,all mobilenetv3_large_100 mobilenetv4_conv_small efficientvit_b0 "
TIMM += "tf_efficientnet_b0 regnety_002 res2net50_26w_4s hrnet_w18_small dla34 cspresnet50 darknet53 vgg11_bn "
TIMM += "inception_v3 xception41 convnextv2_atto vit_tiny_patch16_224 deit_tiny_patch16_224 "
TIMM += (
    "swin_tiny_patch4_window7_224 mobileone_s0,all fastvit_t8 edgenext_xx_small dpn68 skresnet18 nfnet_l0 resnext26ts"
)
NAMES = [f"torchvision:{name}" for name in TORCHVISION.split()] + [f"timm:{name}" for name in TIMM.split()]
SIZES = {"inception_v3": 299, "vit": 224, "deit": 224, "swin": 224, "fastvit": 224, "edgenext": 224}
PIXELS = 96  # of an image, where the network takes any
GAIN = 0.3  # of a residual branch that its maker lets begin at next to nothing
HEADS = 16  # up to so many units are heads, or little else: a third of them goes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, help="torchvision:NAME or timm:NAME, with ,all for trunks")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds cifar10/")
    parser.add_argument("--images", type=int, default=64, help="that repair, and as many to compare on")
    parser.add_argument("--kept", type=float, default=0.75, help="part of every layer that is no head")
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(args.names[0], args.data, args.images, args.kept)))
        return
    print(header())
    rows = []
    for name in args.names:
        options = ["--data", args.data, "--images", str(args.images), "--kept", str(args.kept)]
        command = [sys.executable, __file__, *options, "--row", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        row = json.loads(done.stdout) if done.returncode == 0 else {"network": name, "layers": "failed"}
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    head = max(rows, key=len)
    print(table(list(head), [[str(row.get(key, "–")) for key in head] for row in rows]))


def measure(name: str, data: Path, count: int, part: float) -> dict[str, Any]:
    """One network's row."""
    warnings.simplefilter("ignore")
    started = time.process_time()
    place, _, trunks = name.partition(",")
    size = next((pixels for part, pixels in SIZES.items() if part in place), PIXELS)
    config = NetworkConfig(name=place, num_classes=10, pretrain=FitConfig(epochs=1))
    statistics, calibration, held_out = photographs(data, size, count)
    model = alive(build_network(config, seed=0), statistics)
    found = time.process_time()
    structure = find_layers(model, (3, size, size), cut="all" if trunks == "all" else "inner")
    seconds = time.process_time() - found
    rng = np.random.default_rng(0)
    selection = [np.sort(rng.choice(layer.units, kept(layer.units, part), replace=False)) for layer in structure.layers]
    return {
        "network": name,
        "layers": len(structure.layers),
        "least FLOPs": f"{structure.fraction('flops', [layer.choices[0] for layer in structure.layers]):.2f}",
        "left whole": reasons(structure),
        "masked − shrunk": f"{difference(model, structure, selection, held_out[:2]):.0e}",
        **distances(model, structure, selection, calibration, held_out),
        "reloaded": reloaded(model, structure, selection, config, held_out[:2]),
        "found in, CPU s": f"{seconds:.0f}",
        "all, CPU s": f"{time.process_time() - started:.0f}",
        "peak, GB": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f}",
    }


def photographs(data: Path, size: int, count: int) -> list[Tensor]:
    """Three times (count, 3, size, size), no image twice: for batch-norm statistics, for the repair, to measure on."""
    chosen = load_splits(cifar_config(20, data).data, num_classes=10).search
    pixels = chosen.source.decode(chosen.indices[: 3 * count])
    x = normalise(pixels, chosen.mean, chosen.std)
    return list(nn.functional.interpolate(x, size=size, mode="bicubic").split(count))


def alive(model: nn.Module, images: Tensor) -> nn.Module:
    """Weights drawn for rectifiers; gains that switch a branch off set to `GAIN`; batch-norm statistics of images."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        for name, parameter in model.named_parameters():
            if not name.endswith("bias") and float(parameter.abs().max()) < 1e-2:
                parameter.fill_(GAIN)
    model = opened(model).eval()
    adapt_batchnorm(model, [(images, torch.zeros(len(images)))])
    return model


def kept(units: int, part: float) -> int:
    """A part of them; of a few, which are heads mostly, two thirds."""
    return max(1, int(part * units) if units > HEADS else 2 * units // 3)


def reasons(structure: ChannelStructure) -> str:
    """How many groups are left whole, by the beginning of the reason."""
    found = Counter(" ".join(reason.split()[:5]) for reason in structure.ignored.values() if "coupled to" not in reason)
    del found["it is the network's output"]
    return ", ".join(f"{count} × {reason}" for reason, count in found.most_common()) or "–"


@torch.no_grad()
def difference(model: nn.Module, structure: ChannelStructure, selection: Selection, x: Tensor) -> float:
    """The largest between the masked and the smaller network, over the spread of the outputs."""
    expected, actual = mask(model, structure, selection)(x), cut(model, structure, selection).model(x)
    return float((expected - actual).abs().max() / (expected - expected.mean(0)).abs().max())


@torch.no_grad()
def distances(
    model: nn.Module, structure: ChannelStructure, selection: Selection, images: Tensor, x: Tensor
) -> dict[str, str]:
    """From the dense network, on x: nothing repaired, and by either repair on the images."""
    calibration = [(part, torch.zeros(len(part))) for part in images.split(16)]
    dense = model(x)

    def distance(small: nn.Module) -> str:
        return f"{float((small(x) - dense).square().sum() / (dense - dense.mean(0)).square().sum()):.3f}"

    unrepaired = distance(cut(model, structure, selection).model)
    gram = cut(model, structure, selection)
    repair_from_moments(gram, model, collect_moments(model, gram.cut, calibration))
    fitted = cut(model, structure, selection)
    try:
        SequentialRepair(model, calibration)(fitted, refit=True)
        sequential = distance(fitted.model)
    except UntraceableError:
        sequential = "not traced"
    return {"unrepaired": unrepaired, "gram": distance(gram.model), "sequential": sequential}


@torch.no_grad()
def reloaded(
    model: nn.Module, structure: ChannelStructure, selection: Selection, config: NetworkConfig, x: Tensor
) -> str:
    """Whether what was saved and loaded computes the same."""
    compressed = cut(model, structure, selection)
    with tempfile.TemporaryDirectory() as folder:
        save_network(
            compressed.model,
            Path(folder),
            method="channels",
            recipe=compressed.recipe,
            network=config,
            input_shape=structure.input_shape,
            objective=ObjectiveConfig(),
        )
        return "yes" if torch.equal(secateur.load(folder)(x), compressed.model(x)) else "no"


if __name__ == "__main__":
    main()
