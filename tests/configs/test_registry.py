"""One registry for all plug-ins."""

from __future__ import annotations

import pytest

from secateur.configs.registry import Registry, UnknownNameError


def registry() -> Registry[object]:
    known: Registry[object] = Registry("criterion")
    known.register("lasso")(object())
    return known


def test_it_is_a_mapping_in_the_order_of_names() -> None:
    known = registry()

    @known.register("first")
    def first() -> None: ...

    assert list(known) == ["first", "lasso"]
    assert len(known) == 2
    assert known["first"] is first
    assert "first" in known
    assert "second" not in known


@pytest.mark.parametrize("kind", [ValueError, KeyError, UnknownNameError])
def test_an_unknown_name_is_refused_with_the_near_miss(kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        registry()["lasoo"]
    assert str(caught.value) == "no criterion 'lasoo', only lasso – did you mean lasso?"
    with pytest.raises(kind) as caught:
        registry()["x"]
    assert str(caught.value) == "no criterion 'x', only lasso"


def test_a_name_is_given_once() -> None:
    known = registry()

    def make(answer: int) -> object:
        def one() -> int:
            return answer

        return one

    def two() -> None: ...

    again = make(2)
    known.register("one")(make(1))
    known.register("one")(again)  # the same definition, run again
    assert known["one"] is again
    with pytest.raises(ValueError, match="criterion 'one' is registered already: choose another name"):
        known.register("one")(two)
    assert known["one"] is again


@pytest.mark.parametrize("name", ["", "package.module:callable"])
def test_a_name_that_would_be_taken_for_code_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="holds no colon, and is not empty"):
        registry().register(name)
