"""A custom network by dotted path: "package.module:Class" or "package.module.Class"."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ssfl.core.cost import forward_zeros
from ssfl.core.tensor_roles import STORED_TYPES, LayoutError, cast_floats, prunable_names, tensor_roles
from ssfl.errors import UserError
from ssfl.models.errors import ModelError


def build_own_model(
    path: str,
    num_classes: int,
    input_shape: Sequence[int],
    norm: str,
    input_dtype: torch.dtype | None = None,
) -> nn.Module:
    """The network made by the class (or function) at `path`.

    It is called with the arguments `num_classes`, `input_shape` (one example without batch) and `norm`, if its
    signature has them. Its floats become float32. One pass of zeros then checks that it returns logits
    [B, num_classes]. Raises ModelError if the path cannot be imported, the call fails, the result is not
    such a network, or its state cannot be sent between clients.
    """
    make = find_own_model(path)
    module = _call(path, make, {"num_classes": num_classes, "input_shape": tuple(input_shape), "norm": norm})
    cast_floats(module, torch.float32)
    if any(map(is_lazy, (*module.parameters(), *module.buffers()))):
        # Its first pass makes their tensors.
        _check_output(path, module, num_classes, input_shape, input_dtype)
    _check_state(path, module)
    _check_output(path, module, num_classes, input_shape, input_dtype)
    if not any(tensor.role == "trained" for tensor in tensor_roles(module)):
        raise ModelError(f"model {path!r} has no trainable parameters: none has requires_grad=True")
    return module


def find_own_model(path: str) -> Callable[..., Any]:
    """The class or function at `path`, "package.module:Class". Raises ModelError if it cannot be imported."""
    module_path, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    if not module_path or not attribute:
        raise ModelError(f"model path {path!r} is incomplete; write package.module:Class")
    try:
        module = importlib.import_module(module_path)
    except UserError:
        raise
    except Exception as error:  # the user's module may fail in any way while it is imported
        raise ModelError(
            f"model {path!r}: importing {module_path!r} failed ({_one_line(error)}); "
            "write package.module:Class; run from the folder that contains it, or add that folder to PYTHONPATH"
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
        raise ModelError(
            f"model {path!r} is neither a torch.nn.Module class nor a function that returns a module"
        )
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
    except Exception as error:  # the user's constructor may raise any error
        raise ModelError(
            f"model {path!r} could not be created ({_one_line(error)}); "
            f"it may take {', '.join(offered)}; every other argument needs a default"
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"model {path!r} returned a {type(module).__name__}, not a torch.nn.Module")
    return module


def _check_state(path: str, module: nn.Module) -> None:
    try:
        tensor_roles(module)
        prunable_names(module)
    except LayoutError as error:
        raise ModelError(f"model {path!r}: {error}") from error
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor) and value.dtype not in STORED_TYPES:
            kind = str(value.dtype).removeprefix("torch.")
            raise ModelError(
                f"model {path!r}: {name} is {kind}, which the file of a trained network cannot hold; use another type "
                "(complex64 for complex numbers), or a buffer that is not saved (persistent=False)"
            )


def _check_output(
    path: str, module: nn.Module, num_classes: int, input_shape: Sequence[int], dtype: torch.dtype | None
) -> None:
    examples = 2
    try:
        output = forward_zeros(module, input_shape, examples, dtype)
    except Exception as error:  # the user's forward may raise any error
        raise ModelError(
            f"model {path!r} fails on an input of shape {[examples, *input_shape]} ({_one_line(error)})"
            f"{token_hint(module, dtype)}"
        ) from error
    wanted = [examples, num_classes]
    if not isinstance(output, Tensor) or list(output.shape) != wanted:
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(
            f"model {path!r} returns {got} for an input of shape {[examples, *input_shape]}; "
            f"it must return logits of shape {wanted}"
        )


def token_hint(module: nn.Module, dtype: torch.dtype | None) -> str:
    """A hint for a network that embeds integers but receives floats; empty for other networks."""
    embeds = any(isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) for layer in module.modules())
    return "; token numbers need dataset.features=unchanged" if embeds and dtype is None else ""


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
