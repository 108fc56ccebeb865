"""A user's own network by dotted path: "package.module:Class" or "package.module.Class"."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from torch import Tensor, nn

from ssfl.core.cost import forward_zeros
from ssfl.models.errors import ModelError


def build_own_model(path: str, num_classes: int, input_shape: Sequence[int], norm: str) -> nn.Module:
    """The network made by the class (or function) at `path`.

    It is called with those of `num_classes`, `input_shape` (one example without batch) and `norm` that its
    signature names. One pass of zeros then checks that it gives logits [B, num_classes]. Raises ModelError
    where the path does not import, the call fails, or what it makes is no such network.
    """
    make = _find(path)
    module = _call(path, make, {"num_classes": num_classes, "input_shape": tuple(input_shape), "norm": norm})
    _check_output(path, module, num_classes, input_shape)
    return module


def _find(path: str) -> Callable[..., Any]:
    module_path, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    if not module_path or not attribute:
        raise ModelError(f"model path {path!r} is incomplete; write package.module:Class")
    try:
        module = importlib.import_module(module_path)
    except Exception as error:  # the user's module may fail in any way while it is imported
        raise ModelError(
            f"model {path!r}: importing {module_path!r} failed ({_one_line(error)}); "
            "write package.module:Class, with the package installed or its folder on PYTHONPATH"
        ) from error
    try:
        make = reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        classes = [name for name, value in vars(module).items() if _is_network(value)]
        raise ModelError(
            f"model {path!r}: module {module_path!r} has no {attribute!r}; "
            f"networks in it: {', '.join(classes) or 'none'}"
        ) from error
    if not callable(make) or (inspect.isclass(make) and not issubclass(make, nn.Module)):
        raise ModelError(f"model {path!r} is no torch.nn.Module class, nor a function that returns a module")
    return make


def _is_network(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, nn.Module)


def _call(path: str, make: Callable[..., Any], offered: dict[str, Any]) -> nn.Module:
    parameters = inspect.signature(make).parameters
    if "norm" not in parameters and offered["norm"] != "group":
        raise ModelError(
            f"norm is {offered['norm']!r}, but model {path!r} takes no argument 'norm'; leave norm at 'group'"
        )
    try:
        module = make(**{name: value for name, value in offered.items() if name in parameters})
    except Exception as error:  # whatever the user's constructor raises
        raise ModelError(
            f"model {path!r} could not be made ({_one_line(error)}); "
            f"it may take {', '.join(offered)}, every other argument needs a default"
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"model {path!r} made a {type(module).__name__}, not a torch.nn.Module")
    return module


def _check_output(path: str, module: nn.Module, num_classes: int, input_shape: Sequence[int]) -> None:
    examples = 2
    try:
        output = forward_zeros(module, input_shape, examples)
    except Exception as error:  # whatever the user's forward raises
        raise ModelError(
            f"model {path!r} fails on an input of shape {[examples, *input_shape]} ({_one_line(error)})"
        ) from error
    wanted = [examples, num_classes]
    if not isinstance(output, Tensor) or list(output.shape) != wanted:
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(
            f"model {path!r} gives {got} for an input of shape {[examples, *input_shape]}; "
            f"it must give logits of shape {wanted}"
        )


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
