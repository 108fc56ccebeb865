"""Settings as fields of frozen dataclasses, with default, meaning, unit and range in one place.

Configuration, validation, the list of keys and docs/configuration.md are generated from them. Types are bool, int,
float, str, `Literal` of words, a union of a number with a `Literal` ("auto"), and any of these with None.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Union, final, get_args, get_origin, get_type_hints

from ssfl.errors import UserError

_SETTING = "setting"


def is_small(value: float) -> bool:
    """Whether a number is a float, or a whole number with fewer than 64 bits, which fits one."""
    return not isinstance(value, int) or abs(value) < 1 << 64


@final
class Range(NamedTuple):
    """Allowed numbers; `above` and `below` exclude the ends."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    also: tuple[int, ...] = ()
    """Numbers outside the range that are allowed too (-1)."""

    def holds(self, value: float) -> bool:
        """Whether a finite number is allowed."""
        low_ok = value > self.low if self.above else value >= self.low
        high_ok = value < self.high if self.below else value <= self.high
        return value in self.also or (math.isfinite(value) and low_ok and high_ok)

    def __str__(self) -> str:
        parts = []
        if math.isfinite(self.low):
            parts.append(f"{'above' if self.above else 'at least'} {self.low:g}")
        if math.isfinite(self.high):
            parts.append(f"{'below' if self.below else 'at most'} {self.high:g}")
        return " and ".join(parts) + "".join(f", or {value}" for value in self.also)


@final
@dataclass(frozen=True)
class Setting:
    """A setting as declared by its field."""

    name: str
    default: Any
    about: str
    """One line."""
    words: tuple[str, ...]
    """The allowed words of a `Literal`; empty for other types."""
    kind: type
    """bool, int, float or str: the type of values that are not in `words`."""
    optional: bool
    """Whether None is allowed."""
    range: Range
    published: bool
    """Whether it is a key of the authors' configuration."""
    unread: bool
    """Whether it is accepted only because the published configuration has it."""

    @property
    def allowed(self) -> str:
        """A description: "auto or a whole number, at least 1"."""
        named = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        if self.words and self.kind is str:
            return f"one of {', '.join(self.words)}"
        text = " or ".join([named[self.kind], *self.words])
        bounds = str(self.range)
        return f"{text}, {bounds}" if bounds else text

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, as "must be ..."; None if it is valid."""
        if (value is None and self.optional) or (isinstance(value, str) and value in self.words):
            return None
        wrong_type = isinstance(value, bool) != (self.kind is bool) or not isinstance(
            value, (int, float) if self.kind is float else self.kind
        )
        if wrong_type or (self.words and self.kind is str):
            return f"must be {self.allowed}"
        if self.kind in (int, float) and not is_small(value):
            return "must be below 2**64"
        if self.kind in (int, float) and not self.range.holds(value):
            finite = "" if math.isfinite(value) else "finite: "
            return f"must be {finite}{self.range}"
        return None


class SettingError(UserError):
    """A setting that conflicts with others: its key (without a dot: a setting of the method) and the reason."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{key}={value}: {allowed}")
        self.key, self.value, self.why = key, value, allowed


def setting(
    default: Any,
    about: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    also: tuple[int, ...] = (),
    published: bool = False,
    unread: bool = False,
) -> Any:
    """A dataclass field that declares a setting's meaning and range; its type annotation gives the allowed types."""
    low = above if above is not None else (at_least if at_least is not None else -math.inf)
    high = below if below is not None else (at_most if at_most is not None else math.inf)
    bounds = Range(low, high, above is not None, below is not None, also)
    metadata = {_SETTING: (about, bounds, published, unread)}
    return field(default=default, metadata=metadata)


def settings_of(kind: type[Any]) -> Mapping[str, Setting]:
    """Name -> setting of the fields of a dataclass that were made by `setting`."""
    hints = get_type_hints(kind)
    found = {}
    for one in dataclasses.fields(kind):
        if _SETTING in one.metadata:
            about, bounds, published, unread = one.metadata[_SETTING]
            words, plain, optional = _read_type(hints[one.name])
            found[one.name] = Setting(
                one.name, one.default, about, words, plain, optional, bounds, published, unread
            )
    return types.MappingProxyType(found)


def _read_type(hint: Any) -> tuple[tuple[str, ...], type, bool]:
    """Returns (words of its Literals, the plain type, whether None is allowed)."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    optional = type(None) in members
    words = tuple(w for m in members if get_origin(m) is Literal for w in get_args(m))
    plain = [m for m in members if m in (bool, int, float, str)]
    if len(plain) > 1 or not (plain or words):
        raise TypeError(f"a setting cannot be a {hint}")
    return words, plain[0] if plain else str, optional
