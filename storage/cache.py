"""What is known of a dense network, on disk: computed once for the same network, images, settings and code."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from torch import Tensor

from .files import Tensors, as_bytes, read_tensors, write_tensors

LIMIT = 5 * 2**30  # bytes; when a network is added above it, those that were not used for longest go


def cache_folder() -> Path:
    """Where things are kept that can be computed again: SECATEUR_CACHE, else the user's cache folder.

    Safe to delete at any time.
    """
    if given := os.environ.get("SECATEUR_CACHE"):
        return Path(given)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "secateur"
    try:
        return Path.home() / ".cache" / "secateur"
    except RuntimeError:  # a user without a home, as in a container
        return Path(tempfile.gettempdir()) / "secateur"


class Store:
    """Named tensors: what was asked for once is remembered, on disk if there is a folder.

    Nothing depends on the disk: a damaged file is computed anew and replaced, a full disk or a folder that cannot be
    written is gone on without, each with a RuntimeWarning of one line.

    Every name is a file of its own, there as soon as it is made: whoever is stopped goes on behind the last one.

    Attributes:
        folder: of this key alone; none to remember in memory only.
        watch: told every name when it is first there, found or made.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self.watch: Callable[[str], object] = str
        self._known: dict[str, Tensors] = {}
        self._writable = folder is not None
        if folder is not None and folder.is_dir():
            with suppress(OSError):
                os.utime(folder)

    def get(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        """The tensors of that name, on the CPU where they come from the disk; made, and kept, if there are none."""
        if name not in self._known:
            path = self._path(name)
            found = _read(path, name) if path is not None else None
            if found is None:
                found = make()
                if path is not None:
                    self._write(path, name, found)
            self._known[name] = found
            self.watch(name)
        return self._known[name]

    def holds(self, name: str) -> bool:
        """Whether something of that name was made, here or before; it may be damaged."""
        path = self._path(name)
        return name in self._known or (path is not None and path.is_file())

    def forget(self, name: str) -> None:
        """Out of memory, where it is on disk."""
        path = self._path(name)
        if path is not None and path.is_file():
            self._known.pop(name, None)

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{quote(name, safe='')}.safetensors"

    def _write(self, path: Path, name: str, tensors: Tensors) -> None:
        if not self._writable:
            return
        try:
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True)
                evict(path.parent.parent, LIMIT)
            write_tensors(path, tensors, _about(path, name))
        except OSError as error:
            self._writable = False
            warnings.warn(
                f"the cache in {path.parent} cannot be written ({error.strerror}): going on without; free space, set "
                "SECATEUR_CACHE to another folder, or cache: false in the config",
                RuntimeWarning,
                stacklevel=2,
            )


def digest(tensors: Iterable[Tensor]) -> str:
    """Hash of shapes, types and values."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(as_bytes(tensor))
    return found.hexdigest()[:32]


def code_of(*rooms: str) -> str:
    """Hash of the package's source that computes what is kept: a key never outlives it."""
    found = hashlib.sha256()
    package = Path(__file__).parents[1]
    for room in rooms:
        for file in sorted((package / room).rglob("*.py")):
            found.update(file.read_bytes())
    return found.hexdigest()


def evict(folder: Path, limit: int) -> None:
    """Delete the subfolders that were not used for longest until what is left holds no more than `limit` bytes."""
    sizes = {}
    for entry in folder.iterdir():
        with suppress(OSError):  # another process may be at it, too
            sizes[entry] = (entry.stat().st_mtime, sum(file.stat().st_size for file in entry.iterdir()))
    total = sum(size for _, size in sizes.values())
    for entry, (_, size) in sorted(sizes.items(), key=lambda item: item[1]):
        if total > limit:
            shutil.rmtree(entry, ignore_errors=True)
            total -= size


def _about(path: Path, name: str) -> dict[str, str]:
    """Which entry a file is, so that another one's is not taken for it."""
    return {"key": path.parent.name, "name": name}


def _read(path: Path, name: str) -> Tensors | None:
    try:
        tensors, about = read_tensors(path)
        if about != _about(path, name):
            raise ValueError(f"{path} is another entry's file")
        return tensors
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError) as error:
        warnings.warn(f"{error}: computed anew, and replaced", RuntimeWarning, stacklevel=3)
        return None
