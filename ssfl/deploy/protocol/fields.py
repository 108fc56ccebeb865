"""Fields of a received JSON object: each is read once, with its type and range."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ssfl.deploy.protocol.messages import MessageError


@dataclass(frozen=True)
class Fields:
    """A JSON object; each method reads one field and raises MessageError unless it has the right type and range."""

    fields: Mapping[str, Any]
    name: str = field(default="")

    def _get(self, key: str) -> Any:
        if key not in self.fields:
            raise MessageError(f"{self.name}{key} is missing")
        return self.fields[key]

    def text(self, key: str, most: int = 256) -> str:
        value = self._get(key)
        if not isinstance(value, str) or len(value) > most:
            raise MessageError(f"{self.name}{key} must be text of at most {most} characters")
        return value

    def whole(self, key: str, low: int = 0, high: int = 1 << 53) -> int:
        value = self._get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise MessageError(
                f"{self.name}{key} must be a whole number from {low} to {high}, not {value!r:.40}"
            )
        return value

    def number(self, key: str) -> float:
        value = self._get(key)
        if not isinstance(value, bool) and isinstance(value, int | float):
            with contextlib.suppress(OverflowError):  # a whole number above the largest float
                if math.isfinite(value):
                    return float(value)
        raise MessageError(f"{self.name}{key} must be a finite number, not {value!r:.40}")

    def flag(self, key: str) -> bool:
        value = self._get(key)
        if not isinstance(value, bool):
            raise MessageError(f"{self.name}{key} must be true or false")
        return value

    def sequence(self, key: str, most: int) -> list[Any]:
        value = self._get(key)
        if not isinstance(value, list) or len(value) > most:
            raise MessageError(f"{self.name}{key} must be a list of at most {most}")
        return value

    def whole_list(self, key: str, most: int, high: int = 1 << 53) -> list[int]:
        values = self.sequence(key, most)
        if not all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= high for v in values):
            raise MessageError(f"{self.name}{key} must hold whole numbers from 0 to {high}")
        return values

    def texts(self, key: str, most: int, length: int = 256) -> tuple[str, ...]:
        values = self.sequence(key, most)
        if not all(isinstance(v, str) and len(v) <= length for v in values):
            raise MessageError(f"{self.name}{key} must hold texts of at most {length} characters")
        return tuple(values)

    def numbers(self, key: str, most: int) -> tuple[float, ...]:
        inside = self.sequence(key, most)
        return tuple(Fields({key: value}, self.name).number(key) for value in inside)

    def inside(self, key: str) -> Fields | None:
        value = self._get(key)
        if value is not None and not isinstance(value, dict):
            raise MessageError(f"{self.name}{key} must be an object")
        return None if value is None else Fields(value, f"{key}.")
