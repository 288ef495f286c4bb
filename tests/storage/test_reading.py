"""Files from anybody: what cannot be read is said in a line with file and place, at once."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from secateur.storage.reading import (
    listed,
    parse_json,
    parse_yaml,
    read_json,
    read_text,
    regular,
    shown,
    validated,
)

TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=30)
@given(TREES)
def test_what_is_written_is_read(tree) -> None:
    assert parse_json(json.dumps(tree), "x") == tree


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"f\.json is not JSON \(line 1, column 1: Expecting value\)"),
        ('{\n "a": 1,\n}', r"f\.json is not JSON \(line [23], column \d+"),
        ("[" * 200_000, r"f\.json is nested too deeply"),
        ('{"a": 1, "b": {"c": 2, "c": 3}}', r"f\.json: the key 'c' is there twice"),
        ('{"a": ' + "9" * 5000 + "}", r"f\.json: the integer 9+\.\.\.9+ has more than 64 bits"),
        ('{"a": 9223372036854775808}', r"f\.json: the integer 9223372036854775808 has more than 64 bits"),
        ('{"a": "\x1b"}', r"f\.json is not JSON \(.*control character"),
        ("\ufeff{}", r"f\.json is not JSON \(.*BOM"),
    ],
)
def test_json_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "f.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as refused:
        read_json(tmp_path / "f.json")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 2, c: 3}\n", r"x is not YAML: the key 'c' is there twice \(line 2\)"),
        ("- " * 20_000, "x is nested too deeply"),
        ("a: &a [*a]", "x is not YAML: it stands for more than"),
        ("a: 2020-13-45", "x is not YAML: month must be in 1..12"),
        ("a: " + "9" * 5000, "x is not YAML: Exceeds the limit"),
        ("a: !!python/object/apply:os.system [touch x]", "x is not YAML: could not determine a constructor"),
        ("? [1]\n: 2", "x is not YAML: while constructing a mapping"),
        ("a: !!float x", "x is not YAML: could not convert"),
        ("a: \x07", "x is not YAML: unacceptable character"),
    ],
)
def test_yaml_that_is_none(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        parse_yaml(text, "x")
    assert "\n" not in str(refused.value)


def test_a_few_lines_do_not_stand_for_a_billion_values() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    start = time.perf_counter()
    with pytest.raises(ValueError, match="stands for more than 100000 values"):
        parse_yaml("\n".join(lines), "x")
    assert time.perf_counter() - start < 5.0


def test_a_merged_key_may_be_overridden() -> None:
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}", "f")["b"] == {"x": 3, "y": 2}


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a folder"), (Path("/dev/zero"), "a device")):
        for read in (regular, read_text, read_json):
            with pytest.raises(ValueError, match=f"{path} is {kind}, not a file"):
                read(path)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "nothing")


def test_a_text_is_bounded_and_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"ab\xff")
    assert read_text_of(path, b"abc") == "abc"
    with pytest.raises(ValueError, match=r"f has 3 bytes, more than the 2"):
        read_text(path, 2)
    path.write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match=r"f is not text in UTF-8 \(byte 2\)"):
        read_text(path)


def read_text_of(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return read_text(path)


class Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    count: int
    share: float = 0.0


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"count": True}, "f: count = True: input should be a valid integer"),
        ({"count": "3"}, "f: count = '3': input should be a valid integer"),
        ({"count": 3.0}, "f: count = 3.0: input should be a valid integer"),
        ({"count": 3, "share": float("nan")}, "f: share = nan: input should be a finite number"),
        ({"count": 3, "x": 1}, "f: x: extra inputs are not permitted"),
        ({}, "f: count: field required"),
        ([1], r"f: the whole of it = \[1\]: input should be a valid dictionary"),
    ],
)
def test_nothing_is_converted(tree: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        validated(Entry, tree, "f")
    assert validated(Entry, {"count": 3, "share": 1}, "f") == Entry(count=3, share=1.0)


@settings(max_examples=30)
@given(TREES)
def test_what_is_shown_is_short_and_one_line(tree) -> None:
    assert "\n" not in shown([tree, "a\nb" * 1000])
    assert len(shown([tree] * 20)) < 3000


def test_many_faults_are_counted() -> None:
    assert listed(["a", "b"]) == "a; b"
    assert listed(list("abcdefgh")) == "a; b; c; d; e; and 3 more"
