"""What the fields of an event in metrics.jsonl may hold (docs/metrics.md); anyone may have edited the file."""

from __future__ import annotations

import math
import re
from typing import Any

_COUNTED = {"phase": str, "round": int, "downlink_bytes": float, "uplink_bytes": float}
REQUIRED: dict[str, dict[str, type]] = {
    "phase": _COUNTED,
    "round": _COUNTED,
    "resumed": {"round": int},
    "extended": {"round": int, "rounds": int},
    "run_interrupted": {"round": int},
    "run_finished": {"wall_seconds": float},
}
"""Fields that an event cannot do without."""
_WHOLE = re.compile(
    r"rounds?(_before)?|clients(_trained)?|cohort|(prunable_)?parameters|missing_replies|seed"
)
_NUMBERS = re.compile(
    r".*_(bytes|seconds|flops|loss|mean|std|min|max|auc|f1)|density|global_(\w+_)?accuracy|train_loss_\w+"
)
_LISTS = re.compile(
    r"client(_validation)?_accuracy|.*_(class_accuracy|sensitivity|specificity|names|layers|keys)"
)
_TEXTS = re.compile(r"algorithm|method|mode|model|dataset|phase|executor|version|reason|message|time_utc")
_NAMES = {int: "a whole number", float: "a number", str: "text", list: "a list", dict: "an object"}


def event_problem(row: Any) -> str:
    """Why a line's value is no event that can be read: the field and what it must be; "" where it is one."""
    if not isinstance(row, dict) or not isinstance(row.get("event"), str):
        return "not an event"
    required = REQUIRED.get(row["event"], {})
    for name, kind in required.items():
        if not _is(row.get(name), kind):
            return f"{name} must be {_NAMES[kind]}"
    for name, value in row.items():
        if value is not None and name not in required and not _fits(name, value):
            return f"{name} must be {_NAMES[_kind(name)]}"
    return ""


def _fits(name: str, value: Any) -> bool:
    kind = _kind(name)
    if kind is dict:
        return isinstance(value, dict) and all(_is(item, float) for item in value.values())
    if kind is list:
        inside = str if name.endswith(("names", "layers", "keys")) else float
        return isinstance(value, list) and all(item is None or _is(item, inside) for item in value)
    return kind is object or _is(value, kind)


def _kind(name: str) -> type:
    """What a field of this name holds; object: anything."""
    if name == "layer_density":
        return dict
    kinds = ((_WHOLE, int), (_LISTS, list), (_NUMBERS, float), (_TEXTS, str))
    return next((kind for pattern, kind in kinds if pattern.fullmatch(name)), object)


def _is(value: Any, kind: type) -> bool:
    """Whether the value is of the kind; numbers are finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        return False
    return not isinstance(value, float) or math.isfinite(value)
