"""The numbers of an event, for curves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def scalars(event: Mapping[str, Any]) -> dict[str, float]:
    """Finite numbers of an event by name; `layer_density` is flattened to `layer_density/NAME`."""
    found: dict[str, float] = {}
    for name, value in event.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{inner}": number for inner, number in scalars(value).items()}
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[name] = value
    found.pop("round", None)
    return found
