"""Files that a crash leaves as they were or as they were to be, and never half written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .reading import regular

Tensors = Mapping[str, Tensor]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, for the block to write; it takes the place of `path` when the block ends well.

    A process killed at any point leaves the old file or the new one, and at most a `.NAME.….tmp` beside it; so does
    another one that writes the same file at the same time. The file may be read by whom the user's umask says, however
    the block writes it (safetensors would leave it to its owner alone).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # or the new name may outlive a power cut, and the bytes not
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written in a folder; nobody may be writing there."""
    for path in folder.iterdir():
        if not is_temporary(path):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether it is a temporary file of `replacing`, or a folder of `whole_folder`."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def write_tensors(
    path: Path, tensors: Tensors, about: Mapping[str, str] | None = None, *, record: bool = False
) -> None:
    """Write a safetensors file with a checksum, whole or not at all.

    Args:
        path: to write to.
        tensors: by name, on any device; no two may share memory.
        about: metadata.
        record: whether the file's SHA-256 is written beside it, for `recorded_sha256`.

    Raises:
        OSError: it cannot be written.
    """
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(ready, temporary, metadata={**(about or {}), "checksum": _checksum(ready)})
        except SafetensorError as error:  # its own kind of error, with the system's number in the text
            found = re.search(r"(?:os error|code:) (\d+)", str(error))
            number = int(found[1]) if found else errno.EIO
            raise OSError(number, os.strerror(number), str(path)) from error
        if record:  # before the file itself: a process killed in between leaves no file that is not recorded
            with replacing(beside(path)) as line:
                line.write_text(f"{sha256(temporary)}  {path.name}\n", encoding="utf-8")


def read_tensors(path: Path, *, ours: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and its metadata.

    Args:
        path: of the file.
        ours: whether `write_tensors` wrote it, with a checksum; another one's is checked where there is one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 – no mapping
    except OSError:
        raise
    except Exception as error:  # a header may name types that torch has not: what comes then is not one kind of error
        raise ValueError(f"{path} is damaged (not a safetensors file: {' '.join(str(error).split())})") from error
    recorded = about.pop("checksum", None)
    if (ours or re.fullmatch("[0-9a-f]{8}", recorded or "")) and recorded != _checksum(tensors):
        raise ValueError(f"{path} is damaged (its checksum is wrong)")
    return tensors, about


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with regular(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, recorded: str | None) -> None:
    """Make sure that a file is the one that was saved.

    Args:
        path: of the file.
        recorded: its SHA-256 when it was saved; none where an older version recorded none, and nothing is checked.

    Raises:
        ValueError: it is another file.
    """
    if recorded is not None and (found := sha256(path)) != recorded:
        raise ValueError(
            f"{path} is not the file that was saved here: it was changed, or is another run's (its SHA-256 is "
            f"{found[:12]}…, recorded was {str(recorded)[:12]}…)"
        )


def beside(path: Path) -> Path:
    """Where the SHA-256 of a file is recorded, as `sha256sum --check` reads it."""
    return path.with_name(f"{path.name}.sha256")


def recorded_sha256(path: Path) -> str | None:
    """What `write_tensors` recorded beside a file; none if there is nothing.

    Raises:
        ValueError: what lies there holds no SHA-256.
    """
    record = beside(path)
    if not record.exists():
        return None
    with regular(record).open("rb") as file:
        found = file.read(64).decode("ascii", "replace")
    if not re.fullmatch("[0-9a-f]{64}", found):
        raise ValueError(f"{record} is damaged (it does not begin with a SHA-256)")
    return found


def as_bytes(tensor: Tensor) -> memoryview:
    """A tensor's values, row by row."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.as_strided(flat.shape, (1,)).view(torch.uint8).numpy().data  # a single value may have any stride


def _checksum(tensors: Tensors) -> str:
    """Of names, types, shapes and values; safetensors has none."""
    value = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(as_bytes(tensor), value)
    return f"{value:08x}"


def not_finite(tensors: Mapping[str, object]) -> str | None:
    """The first name whose tensor holds NaN or infinity; none if all are finite."""
    floats = {n: t for n, t in tensors.items() if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())}
    return next((name for name, tensor in floats.items() if not bool(torch.isfinite(tensor).all())), None)


def check_finite(path: Path, tensors: Mapping[str, object]) -> None:
    """Refuse to write a network that computes nothing.

    Raises:
        ValueError: a tensor holds NaN or infinity.
    """
    if (name := not_finite(tensors)) is not None:
        raise ValueError(f"{path} is not written: {name} holds NaN or infinity; the training that made it diverged")


def write_json(path: str | Path, tree: Any) -> None:
    """Write JSON, whole or not at all."""
    with replacing(Path(path)) as temporary:
        temporary.write_text(json.dumps(tree, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def package_versions() -> dict[str, str]:
    """What a result was made with."""
    names = ("secateur", "torch", "stable-baselines3", "gymnasium", "numpy")
    return {name: metadata.version(name) for name in names}
