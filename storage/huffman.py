"""Canonical Huffman codes: symbols that are frequent get short words, and the words follow from their lengths alone.

Huffman (Proc. IRE 1952); canonical: Schwartz & Kallick (CACM 1964). Words have 16 bits at most, so that one look into a
table tells the next symbol, and every `CHUNK` symbols begin on a byte, so that chunks are decoded side by side.
"""

from __future__ import annotations

import heapq
import itertools

import numpy as np
from numpy.typing import ArrayLike, NDArray

LONGEST = 16  # bits of a word
CHUNK = 4096  # symbols that begin on a byte together
GROUP = 256  # chunks that are written at a time, for the memory

Symbols = NDArray[np.int64]
Lengths = NDArray[np.uint8]
ChunkSizes = NDArray[np.uint16]


def code_lengths(counts: ArrayLike) -> Lengths:
    """(symbols,) bits of every symbol's word, 0 for those that never occur; no other prefix code needs fewer in all.

    Where a word would be longer than `LONGEST`, counts are flattened until none is, at a loss of next to nothing.

    Args:
        counts: (symbols,) how often each occurs, `2**LONGEST` of them at most.
    """
    left = np.asarray(counts, dtype=np.int64)
    if len(left) > 1 << LONGEST:
        raise ValueError(f"{len(left)} symbols: words of {LONGEST} bits tell {1 << LONGEST} apart")
    while (lengths := _depths(left)).max(initial=0) > LONGEST:
        left = (left + 1) // 2
    return lengths.astype(np.uint8)


def _depths(counts: Symbols) -> Symbols:
    """(symbols,) depths in Huffman's tree."""
    depths = np.zeros(len(counts), dtype=np.int64)
    present = np.flatnonzero(counts)
    order = itertools.count()
    heap = [(int(counts[symbol]), next(order), [int(symbol)]) for symbol in present]
    heapq.heapify(heap)
    if len(heap) == 1:
        depths[present] = 1  # a word must be told from no word
    while len(heap) > 1:
        (few, _, some), (more, _, others) = heapq.heappop(heap), heapq.heappop(heap)
        together = some + others
        depths[together] += 1
        heapq.heappush(heap, (few + more, next(order), together))
    return depths


def entropy(counts: ArrayLike) -> float:
    """Bits a symbol that no code can go below, where symbols are independent (Shannon 1948)."""
    left = np.asarray(counts, dtype=np.float64)
    shares = left[left > 0] / max(left.sum(), 1.0)
    return float(-(shares * np.log2(shares)).sum())


def encoded_bits(counts: ArrayLike, lengths: Lengths) -> int:
    """What `encode` writes, in bits, but for the last bits of the chunks' last bytes."""
    return int(np.asarray(counts, dtype=np.int64) @ lengths.astype(np.int64))


def encode(symbols: Symbols, lengths: Lengths) -> tuple[bytes, ChunkSizes]:
    """The symbols' words one after the other, and how many bytes every chunk takes, (chunks,).

    Args:
        symbols: (n,) indices into `lengths`.
        lengths: of `code_lengths`; no symbol may have length 0.
    """
    words = _words(lengths)
    written, sizes = [], [np.zeros(0, dtype=np.uint16)]
    for start in range(0, len(symbols), CHUNK * GROUP):
        part = symbols[start : start + CHUNK * GROUP]
        bits = lengths[part].astype(np.int64)
        firsts = np.arange(0, len(part), CHUNK)
        chunk_bytes = -(-np.add.reduceat(bits, firsts) // 8)
        before = np.cumsum(bits) - bits  # bits of the words before, as if no chunk began on a byte
        aligned = 8 * (np.cumsum(chunk_bytes) - chunk_bytes) - before[firsts]
        at = before + np.repeat(aligned, CHUNK)[: len(part)]
        laid = np.zeros(8 * int(chunk_bytes.sum()), dtype=np.uint8)
        for bit in range(int(lengths.max())):
            has = bits > bit
            laid[at[has] + bit] = words[part[has]] >> (bits[has] - 1 - bit) & 1
        written.append(np.packbits(laid).tobytes())
        sizes.append(chunk_bytes.astype(np.uint16))
    return b"".join(written), np.concatenate(sizes)


def decode(data: bytes, sizes: ChunkSizes, lengths: Lengths, count: int) -> Symbols:
    """(count,) the symbols that `encode` wrote.

    Raises:
        ValueError: the bytes are not what it wrote.
    """
    chunks = -(-count // CHUNK)
    if len(sizes) != chunks or int(sizes.sum(dtype=np.int64)) != len(data) or 8 * len(data) < count:
        raise ValueError(f"{count} symbols in {len(data)} bytes of {len(sizes)} chunks: it is damaged")
    symbol_of, length_of = _table(lengths)
    buffer = np.frombuffer(data + bytes(3), dtype=np.uint8).astype(np.int64)
    ends = np.cumsum(sizes, dtype=np.int64)
    at = 8 * (ends - sizes)
    found = np.empty((chunks, CHUNK), dtype=np.int64)
    full = chunks - 1
    for index in range(min(CHUNK, count)):
        rows = chunks if full * CHUNK + index < count else full
        here = at[:rows]
        byte = np.minimum(here >> 3, len(data))
        window = (buffer[byte] << 16 | buffer[byte + 1] << 8 | buffer[byte + 2]) >> (8 - (here & 7)) & 0xFFFF
        found[:rows, index] = symbol_of[window]
        at[:rows] += length_of[window]
        if not length_of[window].all():
            raise ValueError("a word is none of the code's: it is damaged")
    if not np.array_equal(-(-at // 8), ends):
        raise ValueError("a chunk does not end where it should: it is damaged")
    return found.reshape(-1)[:count]


def _words(lengths: Lengths) -> Symbols:
    """(symbols,) the canonical code: in the order of lengths, then of symbols, each word one more than the last."""
    words = np.zeros(len(lengths), dtype=np.int64)
    word, before = 0, 0
    for symbol in _order(lengths):
        word <<= int(lengths[symbol]) - before
        before = int(lengths[symbol])
        words[symbol] = word
        word += 1
    return words


def _order(lengths: Lengths) -> Symbols:
    present = np.flatnonzero(lengths)
    return present[np.argsort(lengths[present], kind="stable")]


def _table(lengths: Lengths) -> tuple[Symbols, Symbols]:
    """(2^16,) the symbol that begins so, and its length; length 0 where none does.

    Raises:
        ValueError: the lengths are no prefix code's.
    """
    taken = (1 << LONGEST) >> lengths[lengths > 0].astype(np.int64)
    if lengths.max(initial=0) > LONGEST or taken.sum() > 1 << LONGEST:
        raise ValueError("the lengths of the words are no prefix code's: it is damaged")
    order = _order(lengths)
    spans = (1 << LONGEST) >> lengths[order].astype(np.int64)
    padding = (1 << LONGEST) - int(spans.sum())
    symbols = np.concatenate([np.repeat(order, spans), np.zeros(padding, dtype=np.int64)])
    bits = np.concatenate([np.repeat(lengths[order].astype(np.int64), spans), np.zeros(padding, dtype=np.int64)])
    return symbols, bits
