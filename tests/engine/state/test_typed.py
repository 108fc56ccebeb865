"""Declared types with matching and wrong values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pytest
import torch
from torch import Tensor

from ssfl.engine.state.typed import TypeFault, check_types


class Loads(Protocol):
    def load(self) -> int: ...


@dataclass(frozen=True)
class Inner:
    count: int = 1

    def load(self) -> int:
        return self.count


@dataclass(frozen=True)
class Record:
    number: int = 1
    real: float = 1.5
    word: Literal["a", "b"] = "a"
    maybe: Tensor | None = None
    pair: tuple[int, str] = (1, "x")
    many: tuple[Inner, ...] = ()
    named: Mapping[str, Tensor] = field(default_factory=dict)
    handles: Mapping[int, Loads] = field(default_factory=dict)
    anything: Any = None


GOOD: list[dict[str, Any]] = [
    {},
    {"real": 2, "maybe": torch.zeros(1), "many": (Inner(), Inner(2))},
    {"named": {"x": torch.zeros(2)}, "handles": {3: Inner()}, "anything": [1]},
]
BAD: dict[str, dict[str, Any]] = {
    "number": {"number": 1.0},
    "real": {"real": "1"},
    "word": {"word": "c"},
    "maybe": {"maybe": 3},
    "pair": {"pair": (1,)},
    "pair[1]": {"pair": (1, 2)},
    "many[1]": {"many": (Inner(), 4)},
    "many[0].count": {"many": (Inner("x"),)},  # type: ignore[arg-type]
    "named['x']": {"named": {"x": 1}},
    "named's key": {"named": {1: torch.zeros(1)}},
    "handles[3]": {"handles": {3: "text"}},
    "anything.count": {"anything": Inner(None)},  # type: ignore[arg-type]
}


@pytest.mark.parametrize("values", GOOD)
def test_what_fits_passes(values: dict[str, Any]) -> None:
    check_types(Record(**values))


@pytest.mark.parametrize("where", BAD)
def test_the_first_field_that_does_not_fit_is_named(where: str) -> None:
    with pytest.raises(TypeFault) as caught:
        check_types(Record(**BAD[where]))
    assert str(caught.value).startswith(f"{where} is a ")
