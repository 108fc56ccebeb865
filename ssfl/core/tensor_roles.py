"""The role of each tensor of a network in a federation: trained, carried, constant, or an alias of one of these."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from ssfl.core.reading import raw_bytes
from ssfl.errors import UserError

PRUNABLE_MODULES = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
STORED_TYPES: Mapping[torch.dtype, str] = MappingProxyType(
    {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.int64: "I64",
        torch.int32: "I32",
        torch.int16: "I16",
        torch.int8: "I8",
        torch.uint64: "U64",
        torch.uint32: "U32",
        torch.uint16: "U16",
        torch.uint8: "U8",
        torch.bool: "BOOL",
        torch.complex64: "C64",
    }
)
"""Types of tensors that a safetensors file may hold, with the format's names of them."""
DECLARED = "prunable_parameters"
"""Attribute of a layer: the names of its own parameters that may be pruned."""

Role = Literal["trained", "carried", "constant", "shared"]


@final
class LayoutError(UserError):
    """The network's state cannot be used in a federation; the message names the tensor and says what to change."""


@final
@dataclass(frozen=True)
class StateTensor:
    """One name of one tensor.

    role: "trained": a parameter that is trained by gradients. "carried": a buffer that training changes; it is sent and
    averaged with the weights. "constant": keeps its initial value on every client; it is never sent. "shared": another
    name of the tensor `same_as`.
    """

    name: str
    role: Role
    dtype: torch.dtype
    shape: tuple[int, ...]
    same_as: str = ""


def tensor_roles(module: nn.Module) -> tuple[StateTensor, ...]:
    """Every parameter and buffer of a module under every name it has, parameters first.

    A parameter is trained where requires_grad is set, else constant. A persistent buffer of finite floats is carried,
    and so is the batch counter of a norm layer that averages over all batches (momentum=None). Other buffers are
    constant: integers, booleans, buffers with infinite values, and those that are not part of the state_dict.
    Raises LayoutError for a trained parameter that is not of real floats or has a gradient hook, and for a layer's
    weight that a hook computes and keeps as a plain attribute.
    """
    _check_attributes(module)
    _check_kinds(module)
    names: dict[int, str] = {}
    found = []
    for name, parameter in module.named_parameters(remove_duplicate=False):
        trained = parameter.requires_grad
        if trained and not parameter.is_floating_point():
            raise LayoutError(
                f"parameter {name} is {_word(parameter)}; trained parameters must be real floats: store real and "
                "imaginary parts in one float parameter (torch.view_as_complex), or set requires_grad=False"
            )
        if trained and parameter._backward_hooks:
            raise LayoutError(
                f"parameter {name} has a gradient hook (register_hook), which copies of the network do not have; "
                "change the gradient in forward instead (torch.autograd.Function)"
            )
        found.append(_entry(name, parameter, "trained" if trained else "constant", names))
    carried = set(_carried_ids(module))
    for name, buffer in module.named_buffers(remove_duplicate=False):
        found.append(_entry(name, buffer, "carried" if id(buffer) in carried else "constant", names))
    return tuple(found)


def _entry(name: str, tensor: Tensor, role: Role, names: dict[int, str]) -> StateTensor:
    first = names.setdefault(id(tensor), name)
    if first != name:
        return StateTensor(name, "shared", tensor.dtype, tuple(tensor.shape), first)
    return StateTensor(name, role, tensor.dtype, tuple(tensor.shape))


def _carried_ids(module: nn.Module) -> Iterator[int]:
    for layer in module.modules():
        for leaf, buffer in layer._buffers.items():
            if buffer is None or leaf in layer._non_persistent_buffers_set:
                continue
            counter = (
                isinstance(layer, _NormBase) and layer.momentum is None and leaf == "num_batches_tracked"
            )
            if counter or (buffer.is_floating_point() and bool(buffer.isfinite().all())):
                yield id(buffer)


def _check_attributes(module: nn.Module) -> None:
    """Refuse the older weight_norm and spectral_norm, and torch.nn.utils.prune: they compute a weight in a hook."""
    for prefix, layer in module.named_modules():
        for leaf, value in vars(layer).items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and not value.is_leaf:
                raise LayoutError(
                    f"tensor {_joined(prefix, leaf)} is computed by a hook and kept as an attribute; use "
                    "torch.nn.utils.parametrizations (weight_norm, spectral_norm), or make pruning permanent with "
                    "torch.nn.utils.prune.remove"
                )


def _check_kinds(module: nn.Module) -> None:
    """Refuse TorchScript, of which copies on threads train wrongly or fail, and tensors without a shape."""
    for name, layer in module.named_modules():
        if isinstance(layer, torch.jit.ScriptModule):
            where = f"layer {name}" if name else "the network"
            raise LayoutError(
                f"{where} is TorchScript, which is not supported; use the nn.Module it was made from"
            )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise LayoutError(
                f"{name} has no shape yet (a lazy layer): pass one batch through the network first"
            )


def prunable_names(module: nn.Module) -> frozenset[str]:
    """Names of the parameters that may be pruned: weights of convolutions and linear layers, and declared ones.

    A layer can declare its prunable parameters in an attribute `prunable_parameters`, a tuple of names. Raises
    LayoutError if the layer has no trained parameter with such a name.
    """
    found = set()
    for prefix, layer in module.named_modules():
        declared = getattr(layer, DECLARED, None)
        for leaf in ("weight",) if declared is None else declared:
            if declared is not None:
                _check_declared(prefix, layer, leaf)
            elif not isinstance(layer, PRUNABLE_MODULES):
                continue
            found.add(_joined(prefix, leaf))
    return frozenset(found)


def _check_declared(prefix: str, layer: nn.Module, leaf: object) -> None:
    own = [n for n, p in layer.named_parameters(recurse=False) if p.requires_grad]
    if leaf not in own:
        where = prefix or type(layer).__name__
        raise LayoutError(
            f"{DECLARED} of {where} names {leaf!r}; its trained parameters are {', '.join(own) or 'none'}"
        )


def fixed_state(module: nn.Module) -> dict[str, Tensor]:
    """The entries of the module's state_dict that training never changes (the constants), by name."""
    roles = {t.name: t.role for t in tensor_roles(module)}
    return {
        name: value.detach().clone() if name in dict(module.named_buffers()) else value.detach()
        for name, value in module.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor) and roles.get(name, "constant") == "constant"
    }


def unsaved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that a state_dict lacks (persistent=False), by name: constants, which the network's code makes."""
    saved = module.state_dict().keys()
    return {name: value for name, value in module.named_buffers() if name not in saved}


def unsaved_digest(module: nn.Module) -> str:
    """Hex digits that differ if a buffer of `unsaved_buffers` differs; empty if there is none."""
    found = unsaved_buffers(module)
    if not found:
        return ""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(found.items()):
        digest.update(json.dumps([name, list(value.shape), _word(value)]).encode())
        digest.update(raw_bytes(value))
    return digest.hexdigest()


def state_under(module: nn.Module, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The module's state_dict with the tensors of `named` under all their names. Raises KeyError if one is missing."""
    first = {t.name: t.same_as for t in tensor_roles(module) if t.role == "shared"}
    return {
        name: named[first.get(name, name)]
        for name, value in module.state_dict().items()
        if isinstance(value, Tensor)
    }


def cast_floats(module: nn.Module, dtype: torch.dtype, device: torch.device | None = None) -> nn.Module:
    """The module with its float tensors in `dtype`, all on `device`; integers and complex numbers keep their type."""
    return _changed(module, lambda t: t.to(device, dtype if t.is_floating_point() else None))


def in_own_memory(module: nn.Module) -> nn.Module:
    """The module with a copy of every tensor, so that none shares memory with others."""
    return _changed(module, Tensor.clone)


def _changed(module: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """The module with all tensors changed, each once: a tensor with two names remains one tensor."""
    known: dict[int, tuple[Tensor, Tensor]] = {}

    def once(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            known[id(tensor)] = tensor, change(tensor)
        return known[id(tensor)][1]

    return module._apply(once)  # type: ignore[no-untyped-call, no-any-return]


def _joined(prefix: str, leaf: str) -> str:
    return f"{prefix}.{leaf}" if prefix else leaf


def _word(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
