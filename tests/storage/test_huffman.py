"""Canonical Huffman codes against Shannon's bounds, and back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.storage import huffman
from secateur.storage.huffman import CHUNK, LONGEST, code_lengths, decode, encode, encoded_bits, entropy


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40))
def test_the_code_is_a_prefix_code_within_a_bit_of_the_entropy(counts: list[int]) -> None:
    lengths = code_lengths(counts)
    assert ((lengths > 0) == (np.array(counts) > 0)).all()
    words = huffman._words(lengths)
    told = sorted(f"{words[s]:0{lengths[s]}b}" for s in np.flatnonzero(lengths))
    assert all(not after.startswith(word) for word, after in itertools.pairwise(told))
    if sum(count > 0 for count in counts) > 1:
        mean = encoded_bits(counts, lengths) / sum(counts)
        assert entropy(counts) <= mean + 1e-9
        assert mean < entropy(counts) + 1
        assert sum(2.0 ** -float(length) for length in lengths if length) == 1.0  # no word is wasted


def test_known_lengths() -> None:
    assert code_lengths([45, 13, 12, 16, 9, 5]).tolist() == [1, 3, 3, 3, 4, 4]  # Cormen et al., 16.3
    assert code_lengths([0, 7, 0]).tolist() == [0, 1, 0]
    assert entropy([1, 1, 1, 1]) == 2.0


def test_words_never_grow_too_long() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(sum(fibonacci[-2:]))
    lengths = code_lengths(fibonacci)  # Huffman's own would have 39 bits
    assert lengths.max() == LONGEST
    assert sum(2.0 ** -float(length) for length in lengths) <= 1.0
    symbols = np.repeat(np.arange(40), 3)
    assert np.array_equal(decode(*encode(symbols, lengths), lengths, 120), symbols)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 3 * CHUNK + 5), st.integers(1, 300), st.floats(0.01, 0.9), st.integers(0, 2**31))
def test_what_was_written_is_read(count: int, kinds: int, skew: float, seed: int) -> None:
    symbols = np.minimum(np.random.default_rng(seed).geometric(skew, count) - 1, kinds - 1).astype(np.int64)
    counts = np.bincount(symbols, minlength=kinds)
    lengths = code_lengths(counts)
    data, sizes = encode(symbols, lengths)
    assert np.array_equal(decode(data, sizes, lengths, count), symbols)
    assert 0 <= 8 * len(data) - encoded_bits(counts, lengths) <= 7 * len(sizes)


def test_several_groups_are_one_stream(monkeypatch) -> None:
    symbols = np.random.default_rng(0).integers(0, 5, 5 * CHUNK + 17)
    lengths = code_lengths(np.bincount(symbols))
    whole = encode(symbols, lengths)
    monkeypatch.setattr(huffman, "GROUP", 2)
    parts = encode(symbols, lengths)
    assert parts[0] == whole[0]
    assert np.array_equal(parts[1], whole[1])


def test_damage_is_told() -> None:
    symbols = np.random.default_rng(0).integers(0, 3, 2 * CHUNK)
    lengths = code_lengths([1, 0, 1, 2])
    data, sizes = encode(np.array([0, 2, 3])[symbols], lengths)
    with pytest.raises(ValueError, match="damaged"):
        decode(data[:-1], sizes, lengths, len(symbols))
    with pytest.raises(ValueError, match="damaged"):
        decode(data, sizes, lengths, len(symbols) + CHUNK)
    with pytest.raises(ValueError, match="damaged"):
        decode(data, sizes, np.array([1, 1, 1], dtype=np.uint8), len(symbols))
    with pytest.raises(ValueError, match="damaged"):  # the words are shorter, and end too early
        decode(data, sizes, np.array([1, 0, 1], dtype=np.uint8), len(symbols))
    with pytest.raises(ValueError, match="damaged"):
        decode(data, sizes, np.array([2, 2], dtype=np.uint8), len(symbols))
    with pytest.raises(ValueError, match="65537 symbols"):
        code_lengths(np.ones(65537))
