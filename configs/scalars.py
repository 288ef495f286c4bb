"""Numbers, paths and names as configs take them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from ..storage.reading import shown
from .registry import joined


class Section(BaseModel):
    """A part of the config: unknown keys are refused, values never change after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _no_truth(value: object) -> object:
    """Python takes true for 1; whoever wrote it meant something else."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no number")
    return value


def _path(path: object) -> object:
    """Python takes no name at all for the working directory."""
    if isinstance(path, str) and (not path.strip() or "\0" in path):
        raise ValueError(f"{path[:80]!r} is no path: it {'holds a null character' if path.strip() else 'is empty'}")
    return path


def _joined(names: object) -> object:
    """A list of names is one name."""
    if not isinstance(names, list):
        return names
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{shown(names)} is no list of names")
    return joined(names)


Integer = Annotated[int, BeforeValidator(_no_truth)]
Number = Annotated[float, BeforeValidator(_no_truth)]
File = Annotated[Path, BeforeValidator(_path)]
Fraction = Annotated[Number, Field(gt=0.0, le=1.0)]
Sparsity = Annotated[Number, Field(ge=0.0, lt=1.0)]
MostSparsity = Annotated[Number, Field(ge=0.0, le=1.0)]  # 1: nothing is left, where that is a choice
Natural = Annotated[Integer, Field(ge=0, le=1_000_000)]
Count = Annotated[Integer, Field(ge=1, le=1_000_000)]  # of what there is only so much of anyway; more is a slip
Batch = Annotated[Integer, Field(ge=1, le=65_536)]  # that is one tensor
Width = Annotated[Integer, Field(ge=1, le=4_096)]  # of a square, or of a layer
Threads = Annotated[Integer, Field(ge=1, le=1_024)]
Candidates = Annotated[Integer, Field(ge=1, le=100_000)]  # all of which are remembered
Epochs = Annotated[Integer, Field(ge=0, le=100_000)]
Seed = Annotated[Integer, Field(ge=0, lt=2**32)]  # what every generator takes
Weight = Annotated[Number, Field(ge=0.0)]
Names = Annotated[str, BeforeValidator(_joined)]  # of plug-ins: one, or several that are one


def check_file_name(name: str) -> str:
    """A name that files and folders are called by, wherever it came from: never a path, nothing invisible.

    Raises:
        ValueError: it is none.
    """
    if not 0 < len(name.strip()) <= len(name) <= 100:
        raise ValueError(
            f"the name {name[:100]!r} has {len(name)} characters: files are called by it, give it 1 to 100"
        )
    odd = [part for part in ("/", "\\", "..") if part in name] + [part for part in name if not part.isprintable()]
    if odd or name == ".":
        raise ValueError(
            f"the name {name!r} holds {(odd or name)[0]!r}: files are called by it; use letters, digits, '-' and '_'"
        )
    return name


FileName = Annotated[str, AfterValidator(check_file_name)]
