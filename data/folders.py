"""Image folders: `train/<class>/*`, `test/<class>/*` (or `val/`, `valid/`), and perhaps `search/<class>/*`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..configs.schema import DataConfig
from .images import Images
from .sources import FileSource, Indices
from .splits import DataSet

LAYOUT = "train/<class>/*.png and test/<class>/*.png"
TESTS = ("test", "val", "valid", "validation")  # the first that is there
PACKED = "__MACOSX"  # what a Mac adds to its archives, beside what is in them


def open_folder(root: Path, config: DataConfig) -> DataSet:
    """List an image folder; classes are the sorted names of the folders in `train/`.

    Raises:
        FileNotFoundError: no such folder, or no `train/`, `test/` or class folder in it.
        ValueError: not a folder, a class without images, or sides whose classes differ.
    """
    if not root.exists():
        raise FileNotFoundError(f"data.root={root} does not exist: set data.root=DIR, a folder with {LAYOUT}")
    if not root.is_dir():
        raise ValueError(f"data.root={root} is not a folder: set data.root=DIR, a folder with {LAYOUT}")
    train = _side(root, "train")
    test = _side(root, *TESTS)
    others = [name for name in TESTS if name != test.name and (root / name).is_dir()]
    sides = [train, test, *([root / "search"] if (root / "search").is_dir() else [])]
    classes = _classes(train)
    paths: list[Path] = []
    labels: list[int] = []
    members: list[Indices] = []
    for side in sides:
        listed = _list(side, classes)
        members.append(np.arange(len(paths), len(paths) + len(listed)))
        paths += [path for path, _ in listed]
        labels += [label for _, label in listed]
    counts = ", ".join(f"{len(member)} in {side.name}/" for side, member in zip(sides, members, strict=True))
    return DataSet(
        source=FileSource(paths, np.array(labels, dtype=np.int64), len(config.mean), config.image_size, config.resize),
        train=members[0],
        test=members[1],
        search=members[2] if len(members) == 3 else None,
        classes=classes,
        description=f"image folder {root}: {len(classes)} classes, images {counts}"
        + "".join(f"; {name}/ is not looked at" for name in others),
    )


def open_images(folder: Path, config: DataConfig) -> Images:
    """All images below a folder, whatever is in it; what they show is not known, and their labels are all 0.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
    """
    paths = _images(folder) if folder.is_dir() else []
    if not paths:
        raise FileNotFoundError(f"{folder} holds no images ({', '.join(_image_endings())})")
    nothing = np.zeros(len(paths), dtype=np.int64)
    source = FileSource(paths, nothing, len(config.mean), config.image_size, config.resize)
    return Images(source, np.arange(len(paths)), tuple(config.mean), tuple(config.std))


def _side(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    inside = [entry for entry in sorted(root.iterdir()) if entry.is_dir() and _is_content(entry.name)]
    packed = len(inside) == 1 and any((inside[0] / name).is_dir() for name in names)
    hint = f" – did you mean data.root={inside[0]}?" if packed else ""
    raise FileNotFoundError(f"data.root={root} has no {'/ or '.join(names)}/ in it: expected {LAYOUT}{hint}")


def _is_content(name: str) -> bool:
    return not name.startswith(".") and name != PACKED


def _classes(side: Path) -> list[str]:
    classes = sorted(entry.name for entry in side.iterdir() if entry.is_dir() and _is_content(entry.name))
    if not classes:
        raise FileNotFoundError(f"{side} holds no class folders: expected {LAYOUT}")
    return classes


def _list(side: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Every image of one side with its class, sorted."""
    found = _classes(side)
    if found != classes:
        odd = sorted(set(found) ^ set(classes))[0]
        where = f"is in {side.name}/ only" if odd in found else f"is in train/ but not in {side.name}/"
        raise ValueError(f"{side.parent}: class folder {odd!r} {where}: every side needs the same classes")
    numbers = {name: number for number, name in enumerate(classes)}
    listed = [(path, label) for name, label in numbers.items() for path in _images(side / name)]
    empty = set(numbers.values()) - {label for _, label in listed}
    if empty:
        raise ValueError(f"{side / classes[min(empty)]} holds no images ({', '.join(_image_endings())})")
    return listed


def _images(folder: Path) -> list[Path]:
    """The images of a class, at any depth, sorted; what is hidden is none, and no folder is walked twice."""
    found: list[tuple[str, str]] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to where the walk has been, and would come by again
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if _is_content(name)]
        found += [(place, name) for name in names if not name.startswith(".")]
    endings = _image_endings()
    return [Path(place, name) for place, name in sorted(found) if name.lower().endswith(endings)]


def _image_endings() -> tuple[str, ...]:
    from torchvision.datasets.folder import IMG_EXTENSIONS  # a second and a half to import: not before it is needed

    return tuple(IMG_EXTENSIONS)
