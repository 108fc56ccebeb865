"""What a model file says about its network, as JSON in its metadata.

Files may come from others, so every field is checked before it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, final

import torch

from ssfl.models.errors import ModelError

METADATA_KEY = "ssfl"
"""Key of a safetensors file's metadata: one JSON object, because the order of several keys changes at each write."""
MOST = float(torch.finfo(torch.float32).max)
InputType = Literal["uint8", "float32", "int64"]
INPUT_TYPES: Mapping[torch.dtype, InputType] = MappingProxyType(
    {torch.uint8: "uint8", torch.float32: "float32", torch.int64: "int64"}
)


@final
@dataclass(frozen=True)
class Inputs:
    """The type of raw rows, and how they become the network's input: (x / divisor - mean) / std in float32.

    input_dtype: "uint8" for pixels (divisor 255), "float32" for features (divisor 1), "int64" for token numbers, which
    the network receives unchanged. mean, std: one entry for all, one per channel of images [B, C, H, W], or one per
    feature of tables [B, F]. class_names: the classes of the logits, in their order.
    """

    input_dtype: InputType
    divisor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]


@final
@dataclass(frozen=True)
class Description:
    """The arguments of `build_model`, and the preprocessing; inputs: None if the sites have no common one.

    unsaved_buffers: digest of the network's buffers that the file lacks; empty: it has none, or the file is older.
    """

    model: str
    norm: str
    num_classes: int
    input_shape: tuple[int, ...]
    inputs: Inputs | None
    unsaved_buffers: str = ""


def inputs_as_json(inputs: Inputs | None) -> dict[str, Any] | None:
    """The preprocessing as in the files' metadata."""
    return None if inputs is None else asdict(inputs)


def description_of(path: Path, text: str | None) -> Description:
    """The description in a file's metadata. Raises ModelError, one line with the field and its allowed values."""
    try:
        about = json.loads(text or "null")
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise ModelError(
            f"{path}: does not describe its network; only files written by a run of ssfl can be used"
        )
    shape = _field(path, about, "input_shape", "positive integers, whose product is below 2^31", _is_shape)
    return Description(
        _field(path, about, "model", "a text", _is_text),
        _field(path, about, "norm", "a text", _is_text),
        _field(path, about, "num_classes", "an integer above 1", lambda v: _is_count(v) and v > 1),
        tuple(shape),
        None if about.get("inputs") is None else _inputs(path, about, shape[0]),
        _field(path, {"unsaved_buffers": "", **about}, "unsaved_buffers", "a text", _is_text),
    )


def _inputs(path: Path, about: Mapping[str, Any], channels: int) -> Inputs:
    inputs = _field(path, about, "inputs", "an object", lambda v: isinstance(v, dict))
    types, classes = tuple(INPUT_TYPES.values()), about["num_classes"]

    def numbers(name: str, allowed: str, positive: bool) -> tuple[float, ...]:
        wanted = f"a list of 1 or {channels} {allowed}"
        return tuple(_field(path, inputs, name, wanted, lambda v: _are_numbers(v, channels, positive)))

    names = f"a list of {classes} texts"
    return Inputs(
        _field(path, inputs, "input_dtype", " or ".join(types), lambda v: v in types),
        _field(path, inputs, "divisor", "a positive number", lambda v: _is_number(v) and v > 0),
        numbers("mean", "finite numbers", positive=False),
        numbers("std", "positive numbers", positive=True),
        tuple(_field(path, inputs, "class_names", names, lambda v: _are_texts(v) and len(v) == classes)),
    )


def _field(path: Path, about: Mapping[str, Any], name: str, allowed: str, fits: Callable[[Any], bool]) -> Any:
    if name not in about:
        raise ModelError(f"{path}: its metadata lacks {name}; allowed: {allowed}")
    if not fits(about[name]):
        raise ModelError(f"{path}: its metadata has {name}={about[name]!r:.60}; allowed: {allowed}")
    return about[name]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MOST


def _is_shape(value: Any) -> bool:
    counts = isinstance(value, list) and 0 < len(value) <= 8 and all(map(_is_count, value))
    return counts and _is_count(math.prod(value))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_numbers(value: Any, channels: int, positive: bool) -> bool:
    numbers = isinstance(value, list) and len(value) in (1, channels) and all(map(_is_number, value))
    return numbers and (not positive or min(value) > 0)
