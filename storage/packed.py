"""Tensors in as few bytes as they need, in one file: Deep Compression's last stage (Han et al., ICLR 2016, sec. 4).

Whatever made the tensors sparse or put them on few values, this finds by looking at them, and loses nothing. Positions
of what is not zero are told relative to the one before (sec. 2); values by their place in a codebook (sec. 3), or on
a row's own grid, scale × integer; both in canonical Huffman codes. Each tensor is written in the way that is shortest.

    magic · bytes of head, of side · head (JSON, deflated) · side (codebooks, scales, code lengths, deflated) · streams
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, JsonValue, NonNegativeInt
from torch import Tensor

from .codings import SKIP, Values, gap_symbols, grid_of, positions_of
from .files import replacing
from .huffman import CHUNK, Symbols, code_lengths, decode, encode, encoded_bits, entropy
from .reading import regular, validated

MAGIC = b"secateur packed 1\n"
SIZES = struct.Struct("<QQ")  # bytes of head and side, deflated
MOST_HEAD = 1 << 28  # bytes of JSON
MOST_VALUES = 4096  # of a codebook


class _Tensor(BaseModel):
    """How a tensor is written.

    Attributes:
        coding: of the values: as they are, by a codebook, or on a grid a row.
        values: how many are written: all, or those that are not zero where there are gaps.
        gaps: how many say where they are; none where all values are written.
        words: of the values' code.
        low: the grid's least integer.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    shape: list[NonNegativeInt]
    dtype: str
    coding: Literal["raw", "codebook", "grid"] = "raw"
    values: NonNegativeInt
    gaps: NonNegativeInt | None = None
    words: NonNegativeInt = 0
    low: int = 0


class _Head(BaseModel):
    model_config = ConfigDict(extra="forbid")

    about: JsonValue
    tensors: list[_Tensor]
    side: NonNegativeInt
    crc: NonNegativeInt


@dataclass(frozen=True)
class Coded:
    """What was written of a tensor.

    Attributes:
        name: of it.
        coding: of its values; `sparse` in front where only those are written that are not zero.
        numbers: it holds.
        bits: of its words in the file.
        entropy: bits that no code of one word a value (and a gap) can go below; as `bits` for what is written as it is.
    """

    name: str
    coding: str
    numbers: int
    bits: int
    entropy: float


def pack(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> list[Coded]:
    """Write tensors into one file, whole or not at all, and say how each was written."""
    heads, coded = [], []
    side, streams = bytearray(), bytearray()
    for name, tensor in tensors.items():
        array = tensor.detach().cpu().contiguous()
        writing = _shortest(name, array)
        heads.append(writing.head)
        coded.append(writing.coded)
        side += writing.side
        streams += writing.stream
    head = _Head(about=dict(about), tensors=heads, side=len(side), crc=zlib.crc32(bytes(streams)))
    parts = [zlib.compress(head.model_dump_json(exclude_defaults=True).encode(), 9), zlib.compress(bytes(side), 9)]
    with replacing(path) as temporary:
        temporary.write_bytes(MAGIC + SIZES.pack(*map(len, parts)) + b"".join(parts) + bytes(streams))
    return coded


@dataclass(frozen=True)
class Packed:
    """A packed file, opened: what it holds is known before anything is decoded.

    Attributes:
        path: of the file.
        about: what `pack` was told.
        shapes: of the tensors, by name.
    """

    path: Path
    about: JsonValue
    _heads: list[_Tensor]
    _side: bytes
    _streams: bytes

    @classmethod
    def open(cls, path: Path) -> Packed:
        """Read a file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or none of `pack`'s.
        """
        data = regular(path).read_bytes()
        if not data.startswith(MAGIC):
            raise ValueError(f"{path} is no packed network (it does not begin as one)")
        try:
            begin = len(MAGIC) + SIZES.size
            head_bytes, side_bytes = SIZES.unpack(data[len(MAGIC) : begin])
            middle, end = begin + head_bytes, begin + head_bytes + side_bytes
            tree = json.loads(_inflated(data[begin:middle], MOST_HEAD))
        except (ValueError, RecursionError, struct.error, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from error
        head = validated(_Head, tree, str(path))
        try:
            side, streams = _inflated(data[middle:end], head.side), data[end:]
        except (ValueError, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from error
        if len(side) != head.side or zlib.crc32(streams) != head.crc:
            raise ValueError(f"{path} is damaged (its checksum is wrong)")
        return cls(path, head.about, head.tensors, side, streams)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors, by name."""
        return {head.name: tuple(head.shape) for head in self._heads}

    def tensors(self, most: float = math.inf) -> dict[str, Tensor]:
        """All of them, bit for bit what `pack` was given, on the CPU.

        Args:
            most: how many numbers they may hold: a few bytes can say that there are billions.

        Raises:
            ValueError: the file is damaged, or they hold more.
        """
        if (numbers := sum(map(math.prod, self.shapes.values()))) > most:
            raise ValueError(f"{self.path} holds {numbers:,} numbers, where {most:,} are expected")
        side, streams = _Reader(self._side), _Reader(self._streams)
        try:
            found = {head.name: _read(head, side, streams) for head in self._heads}
            if side.left or streams.left:
                raise ValueError("there is more in it than it says")
        except (ValueError, LookupError, TypeError, RuntimeError, MemoryError, OverflowError) as error:
            raise ValueError(f"{self.path} is damaged: {' '.join(str(error).split())}") from error
        return found


@dataclass(frozen=True)
class _Writing:
    head: _Tensor
    side: bytes
    stream: bytes
    entropy: float

    @property
    def size(self) -> int:
        return len(zlib.compress(self.side, 9)) + len(self.stream)

    @property
    def coded(self) -> Coded:
        coding = self.head.coding if self.head.gaps is None else f"sparse {self.head.coding}"
        return Coded(self.head.name, coding, math.prod(self.head.shape), 8 * len(self.stream), self.entropy)


@dataclass(frozen=True)
class _Code:
    """Symbols in their own Huffman code: what goes beside, and the words."""

    side: bytes
    stream: bytes
    entropy: float

    @classmethod
    def of(cls, symbols: Symbols, words: int) -> _Code:
        counts = np.bincount(symbols, minlength=words)
        lengths = code_lengths(counts)
        stream, sizes = encode(symbols, lengths)
        assert 8 * len(stream) >= encoded_bits(counts, lengths)
        return cls(lengths.tobytes() + sizes.astype("<u2").tobytes(), stream, entropy(counts) * len(symbols))


def _shortest(name: str, tensor: Tensor) -> _Writing:
    """Of all ways to write a tensor the shortest; the first where two are."""
    whole = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    dtype = str(tensor.dtype).removeprefix("torch.")
    head = _Tensor(name=name, shape=list(tensor.shape), dtype=dtype, values=tensor.numel())
    if not _is_coded(tensor.dtype, tensor.shape):
        return _Writing(head, whole, b"", 8.0 * len(whole))
    found = [_Writing(head, b"", whole, 8.0 * len(whole))]
    flat = tensor.reshape(-1).numpy()
    present = np.flatnonzero(flat.view(np.int32))
    gaps = gap_symbols(present)
    where = _Code.of(gaps, SKIP + 1) if len(present) < len(flat) else None
    raw = flat[present].tobytes()
    if where is not None:
        sparse = head.model_copy(update={"values": len(present), "gaps": len(gaps)})
        found.append(_Writing(sparse, where.side, where.stream + raw, where.entropy + 8.0 * len(raw)))
    for coding, beside, symbols, words, low in _codings(tensor):
        coded = head.model_copy(update={"coding": coding, "words": words, "low": low})
        dense = _Code.of(symbols, words)
        found.append(_Writing(coded, beside + dense.side, dense.stream, dense.entropy))
        if where is not None:
            few = _Code.of(symbols[present], words)
            coded = coded.model_copy(update={"values": len(present), "gaps": len(gaps)})
            parts = where.side + beside + few.side, where.stream + few.stream, where.entropy + few.entropy
            found.append(_Writing(coded, *parts))
    return min(found, key=lambda writing: writing.size)


def _is_coded(dtype: torch.dtype, shape: Sequence[int]) -> bool:
    """Whether a tensor is worth a code of its own; what is small goes beside as it is, deflated."""
    return dtype == torch.float32 and len(shape) > 1 and math.prod(shape) > 0


def _codings(tensor: Tensor) -> Iterable[tuple[Literal["codebook", "grid"], bytes, Symbols, int, int]]:
    """Coding, what goes beside, (n,) symbols, how many there may be, the least integer."""
    flat = tensor.reshape(-1).numpy().view(np.int32)
    book, symbols = np.unique(flat, return_inverse=True)
    if len(book) <= MOST_VALUES:
        yield "codebook", book.astype("<i4").tobytes(), symbols.astype(np.int64), len(book), 0
    grid = grid_of(tensor.reshape(len(tensor), -1).numpy())
    if grid is not None:
        scales, codes = grid
        low = int(codes.min(initial=0))
        yield "grid", scales.astype("<f4").tobytes(), codes.reshape(-1) - low, int(codes.max(initial=0)) - low + 1, low


class _Reader:
    """Bytes from the first to the last."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def take(self, count: int) -> bytes:
        if count > len(self._data):
            raise ValueError("it ends too early")
        taken, self._data = self._data[:count], self._data[count:]
        return bytes(taken)

    @property
    def left(self) -> int:
        return len(self._data)


def _read(head: _Tensor, side: _Reader, streams: _Reader) -> Tensor:
    dtype = getattr(torch, head.dtype)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{head.name}: {head.dtype} is no type of numbers")
    numbers = math.prod(head.shape)
    if head.gaps is None and head.values != numbers:
        raise ValueError(f"{head.name}: {head.values} values for {numbers} numbers")
    if not _is_coded(dtype, head.shape):
        data = bytearray(side.take(numbers * dtype.itemsize))
        return torch.frombuffer(data, dtype=dtype).reshape(head.shape) if data else torch.empty(head.shape, dtype=dtype)
    places = None if head.gaps is None else positions_of(_symbols(SKIP + 1, head.gaps, side, streams))
    if places is not None and (len(places) != head.values or places.max(initial=-1) >= numbers):
        raise ValueError(f"{head.name}: its gaps lead elsewhere")
    flat: Values = np.zeros(numbers, dtype=np.float32)
    at: slice | Symbols = slice(None) if places is None else places
    if head.coding == "raw":
        flat[at] = np.frombuffer(streams.take(4 * head.values), dtype="<f4")
    elif head.coding == "codebook":
        book = np.frombuffer(side.take(4 * head.words), dtype="<i4").astype(np.int32)
        flat.view(np.int32)[at] = book[_symbols(head.words, head.values, side, streams)]
    else:
        scales = np.frombuffer(side.take(4 * head.shape[0]), dtype="<f4").astype(np.float32)
        integers = np.zeros(numbers, dtype=np.int64)
        integers[at] = _symbols(head.words, head.values, side, streams) + head.low
        flat = (scales[:, None] * integers.reshape(head.shape[0], -1).astype(np.float32)).reshape(-1)
    return torch.from_numpy(flat).reshape(head.shape)


def _symbols(words: int, count: int, side: _Reader, streams: _Reader) -> Symbols:
    lengths = np.frombuffer(side.take(words), dtype=np.uint8)
    sizes = np.frombuffer(side.take(2 * -(-count // CHUNK)), dtype="<u2").astype(np.uint16)
    return decode(streams.take(int(sizes.sum(dtype=np.int64))), sizes, lengths, count)


def _inflated(data: bytes, most: int) -> bytes:
    """What was deflated, `most` bytes at most.

    Raises:
        ValueError, zlib.error: it was not, or there are more.
    """
    inflating = zlib.decompressobj()
    found = inflating.decompress(data, most + 1)
    if len(found) > most or not inflating.eof or inflating.unused_data:
        raise ValueError("it is not as long as it says")
    return found
