"""Check that the fields of a record read from a file have the declared types, recursively."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints


class TypeFault(TypeError):
    """A value does not have the type that its field declares; the message names the field."""


def check_types(record: Any, where: str = "") -> None:
    """Check a dataclass instance against its declarations. Raises TypeFault, which names the first field that differs.

    Protocols and type variables accept every value that is not a plain one; their own records are checked too.
    """
    for name, hint in _hints(type(record)).items():  # type: ignore[arg-type]
        _check(getattr(record, name), hint, f"{where}{name}")


@cache
def _hints(kind: type[Any]) -> Mapping[str, Any]:
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind)}


def _check(value: Any, hint: Any, where: str) -> None:
    if not _fits(value, hint, where):
        raise TypeFault(f"{where} is a {type(value).__name__}")
    if is_dataclass(value) and not isinstance(value, type):
        check_types(value, f"{where}.")


def _fits(value: Any, hint: Any, where: str) -> bool:
    if hint is Any or isinstance(hint, TypeVar):
        return True
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_is(value, one, where) for one in inside)
    if origin is Literal:
        return value in inside
    if origin is None:
        return _is_plain(value, hint)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return False
        for key, item in value.items():
            _check(key, inside[0], f"{where}'s key")
            _check(item, inside[1], f"{where}[{key!r:.40}]")
        return True
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return isinstance(value, (tuple, list)) and _items_fit(value, inside, where)
    return isinstance(value, origin) if isinstance(origin, type) else True


def _items_fit(value: Sequence[Any], inside: tuple[Any, ...], where: str) -> bool:
    if len(inside) == 1 or (len(inside) == 2 and inside[1] is Ellipsis):
        hints: Sequence[Any] = [inside[0]] * len(value)
    else:
        hints = inside
    if len(hints) != len(value):
        return False
    for number, (item, hint) in enumerate(zip(value, hints)):
        _check(item, hint, f"{where}[{number}]")
    return True


def _is(value: Any, hint: Any, where: str) -> bool:
    try:
        _check(value, hint, where)
    except TypeFault:
        return False
    return True


def _is_plain(value: Any, hint: Any) -> bool:
    if hint is None or hint is type(None):
        return value is None
    if not isinstance(hint, type):
        return True
    if getattr(hint, "_is_protocol", False):
        return value is not None and not isinstance(value, (bool, int, float, str, bytes, tuple, list, dict))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
