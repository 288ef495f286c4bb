"""Budgets as people say them: 0.5, "60%", "20M", "5ms"; one table of units for every kind of cost."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import BeforeValidator

_COUNTS = {"k": 1e3, "M": 1e6, "G": 1e9}
UNITS = {  # of a kind of cost: what each is of that which `Structure.costs` counts, the smallest first
    "flops": _COUNTS,
    "params": _COUNTS,
    "latency": {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9},
    "size": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9},
    "bops": {"M": 1e6, "G": 1e9, "T": 1e12},
}
EXAMPLES = {"flops": "20M", "params": "1.5M", "latency": "5ms", "size": "100kB", "bops": "2G"}
DIGITS = 4  # of an amount for a person

_SAID = re.compile(r"([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([^\W\d_]+|%)?")


def asked(kind: str, given: object) -> object:
    """A budget as a config holds it: a fraction in (0, 1], or an amount with its unit ("20M").

    Raises:
        ValueError: it is neither; the units are named.
    """
    if not isinstance(given, str):
        return given if given is None else _fraction(kind, given)
    number, unit = _taken_apart(kind, given)
    if unit is None:
        return _fraction(kind, number)
    if unit == "%":
        return _fraction(kind, number / 100)
    if not 0.0 < number * UNITS[kind][unit] < math.inf:
        raise ValueError(f"{given!r} must be greater than 0, and finite")
    return f"{number:.15g}{unit}"


def amount(kind: str, said: str) -> float:
    """What an amount ("20M") is in what the structure counts: multiply-accumulates, parameters, nanoseconds.

    Raises:
        ValueError: it is none.
    """
    number, unit = _taken_apart(kind, said)
    if unit not in UNITS[kind]:
        raise ValueError(f"{said!r} is no amount: {_remedy(kind)}")
    return number * UNITS[kind][unit]


def told(kind: str, count: float, *, up: bool = False) -> str:
    """An amount for a person, with a unit that `asked` reads: 20.31M; `up` rounds up, so that it is enough."""
    units = UNITS.get(kind, _COUNTS)
    unit = max((name for name in units if units[name] <= count), key=units.__getitem__, default=next(iter(units)))
    number = count / units[unit]
    if number == 0.0:
        return f"0{unit}"
    step = 10.0 ** (math.floor(math.log10(number)) + 1 - DIGITS)
    rounded = (math.ceil(number / step - 1e-9) if up else round(number / step)) * step
    return f"{rounded:.12g}{unit}"


def _taken_apart(kind: str, said: str) -> tuple[float, str | None]:
    found = _SAID.fullmatch(said.strip())
    try:
        number, unit = (float(found[1]), found[2]) if found else (math.nan, None)
    except ValueError:  # 1.2.3
        number, unit = math.nan, None
    unit = {"K": "k", "µs": "us", "μs": "us"}.get(unit or "", unit)  # the micro sign, and the Greek letter
    if math.isnan(number) or (unit is not None and unit != "%" and unit not in UNITS[kind]):
        raise ValueError(f"{said[:80]!r} is no budget: {_remedy(kind)}")
    return number, unit


def _fraction(kind: str, given: object) -> float:
    if isinstance(given, bool):
        raise ValueError(f"{str(given).lower()} is no number")
    if not isinstance(given, int | float):
        raise ValueError(f"{str(given)[:80]!r} is no budget: {_remedy(kind)}")
    if not 0.0 < given <= 1.0:
        raise ValueError(f"{given:g} must be greater than 0 and at most 1, or have a unit: {_remedy(kind)}")
    return float(given)


def _remedy(kind: str) -> str:
    units = ", ".join(UNITS[kind])
    return f'give a fraction of the dense network in (0, 1], "60%", or an amount such as "{EXAMPLES[kind]}" ({units})'


def _checked(kind: str) -> BeforeValidator:
    return BeforeValidator(lambda given: asked(kind, given))


Flops = Annotated[float | str, _checked("flops")]
Params = Annotated[float | str, _checked("params")]
Latency = Annotated[float | str, _checked("latency")]
Size = Annotated[float | str, _checked("size")]
Bops = Annotated[float | str, _checked("bops")]
