"""Declared settings: values that a type and a range allow, in hand-made cases."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssfl.errors import UserError
from ssfl.settings import Range, SettingError, setting, settings_of


@dataclass(frozen=True)
class Example:
    """One setting of each kind."""

    share: float = setting(0.5, "a share", above=0, at_most=1)
    count: int = setting(-1, "a count; -1: all", at_least=1, also=(-1,))
    word: Literal["a", "b"] = setting("a", "a word")
    workers: int | Literal["auto"] = setting("auto", "a number or auto", at_least=1)
    limit: int | None = setting(None, "a limit")
    name: str = setting("x", "text")
    flag: bool = setting(False, "yes or no")
    undeclared: int = 3


FITS: list[tuple[str, list[Any], list[Any]]] = [
    ("share", [0.5, 1, 1.0, 1e-9], [0, 0.0, 1.1, -1, math.nan, math.inf, "0.5", True, None]),
    ("count", [1, 7, -1], [0, -2, 1.0, "1", True, None]),
    ("word", ["a", "b"], ["c", "", 1, None]),
    ("workers", ["auto", 1, 8], [0, "two", 1.5, None, True]),
    ("limit", [None, 0, -5], [1.5, "none", False]),
    ("name", ["", "y"], [1, None, True]),
    ("flag", [True, False], [0, 1, "true", None]),
]


@pytest.mark.parametrize(("name", "good", "bad"), FITS, ids=[row[0] for row in FITS])
def test_what_a_type_and_a_range_allow(name: str, good: list[Any], bad: list[Any]) -> None:
    declared = settings_of(Example)[name]
    assert [v for v in good if declared.problem(v) is not None] == []
    assert [v for v in bad if declared.problem(v) is None] == []


def test_fields_of_other_makers_are_no_settings() -> None:
    assert list(settings_of(Example)) == [row[0] for row in FITS]
    assert settings_of(Example)["workers"].allowed == "a whole number or auto, at least 1"
    assert str(settings_of(Example)["count"].range) == "at least 1, or -1"


def test_a_type_that_no_setting_can_be() -> None:
    @dataclass(frozen=True)
    class Wrong:
        both: int | float = setting(1, "two kinds of numbers")

    with pytest.raises(TypeError, match="cannot be"):
        settings_of(Wrong)


@given(st.floats(allow_nan=True), st.floats(-5, 5), st.floats(-5, 5), st.booleans(), st.booleans())
def test_a_range_holds_what_its_ends_say(
    value: float, low: float, high: float, above: bool, below: bool
) -> None:
    inside = math.isfinite(value) and low <= value <= high
    inside = inside and not (above and value == low) and not (below and value == high)
    assert Range(low, high, above, below).holds(value) == inside


def test_an_error_for_the_user_is_one_line() -> None:
    error = UserError("a\nb", where="x=3", allowed="1, 2", remedy="take 1")
    assert str(error) == "x=3: a b; allowed: 1, 2; take 1"
    assert str(SettingError("k", 3, "must be 1")) == "k=3: must be 1"
