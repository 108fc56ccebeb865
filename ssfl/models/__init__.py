"""Networks by name or dotted path, as `nn.Module`.

Initial weights use torch's global generator. For weights that depend on a seed, build the network inside
`torch.random.fork_rng()` after `torch.manual_seed(seed)`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
from torch import nn

from ssfl.models.errors import ModelError
from ssfl.models.norms import norm_layer
from ssfl.models.own import build_own_model, find_own_model
from ssfl.models.resnet import BasicBlock, Bottleneck, ResNet
from ssfl.models.small import MLP, SmallCNN, pools_that_fit

__all__ = ["MODEL_NAMES", "ModelError", "build_model", "check_model_name"]

Builder = Callable[[int, tuple[int, ...], str], nn.Module]
"""(num_classes, input_shape, norm) → network."""


def build_model(
    name: str,
    num_classes: int,
    input_shape: Sequence[int],
    norm: str = "group",
    input_dtype: torch.dtype | None = None,
) -> nn.Module:
    """The network `name` for examples of `input_shape` ((C, H, W) or (F,)), giving logits [B, num_classes].

    `name` is one of MODEL_NAMES or the dotted path of the user's own network, "package.module:Class". `norm`
    is "group" (GroupNorm with the network's usual groups: 32 for ResNet18/34/50, 8 for ResNet8/20, 4 for
    `cnn` and `digits_cnn`), "group2" or another number of groups, or "batch". input_dtype: the type of the examples if
    they are not floats. Raises ModelError, one line, for an unknown name, a path without a network, a norm that does
    not fit, or an input that is too small or of another kind.
    """
    shape = _checked_shape(input_shape)
    if num_classes < 2:
        raise ModelError(f"num_classes is {num_classes}; allowed: 2 or more")
    if name in _BUILDERS:
        if input_dtype is not None:
            raise ModelError(
                f"model {name!r} takes floats, but the features are integers (dataset.features=unchanged); "
                "use a custom network that embeds them, or dataset.features=standardised"
            )
        return _BUILDERS[name](num_classes, shape, norm)
    if _is_path(name):
        return build_own_model(name, num_classes, shape, norm, input_dtype)
    raise _unknown(name)


def check_model_name(name: str) -> None:
    """Raise ModelError if `name` is neither one of MODEL_NAMES nor the path of a network that can be imported."""
    if _is_path(name):
        find_own_model(name)
    elif name not in _BUILDERS:
        raise _unknown(name)


def _is_path(name: str) -> bool:
    return "." in name or ":" in name


def _unknown(name: str) -> ModelError:
    close = difflib.get_close_matches(name, MODEL_NAMES, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return ModelError(
        f"model {name!r} is unknown{hint}; allowed: {', '.join(MODEL_NAMES)}, "
        "or a custom network as package.module:Class"
    )


def _checked_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(int(size) for size in input_shape)
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise ModelError(
            f"input_shape is {shape}; allowed: (channels, height, width) or (features,), each at least 1"
        )
    return shape


def _require_image(name: str, shape: tuple[int, ...], least_side: int) -> None:
    if len(shape) != 3:
        raise ModelError(
            f"model {name!r} takes images (channels, height, width), the input is {shape}; choose 'mlp'"
        )
    if min(shape[1:]) < least_side:
        raise ModelError(
            f"model {name!r} takes images of at least {least_side}x{least_side} pixels, "
            f"the input is {shape}; choose 'mlp' or a smaller network"
        )


def _imagenet_style(
    name: str, block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, ...]
) -> Builder:
    def build(num_classes: int, shape: tuple[int, ...], norm: str) -> nn.Module:
        _require_image(name, shape, least_side=8)
        layer = norm_layer(norm, default_groups=32)
        return ResNet(block, (64, 128, 256, 512), depths, shape[0], num_classes, layer)

    return build


def _cifar_style(name: str, blocks_per_stage: int) -> Builder:
    def build(num_classes: int, shape: tuple[int, ...], norm: str) -> nn.Module:
        _require_image(name, shape, least_side=4)
        layer = norm_layer(norm, default_groups=8)
        depths = (blocks_per_stage,) * 3
        return ResNet(BasicBlock, (16, 32, 64), depths, shape[0], num_classes, layer)

    return build


def _cnn(num_classes: int, shape: tuple[int, ...], norm: str) -> nn.Module:
    _require_image("cnn", shape, least_side=4)
    pools = pools_that_fit(shape[1], shape[2], wanted=3)
    return SmallCNN(shape, num_classes, (32, 64, 64), pools, hidden=64, norm=norm_layer(norm, 4))


def _digits_cnn(num_classes: int, shape: tuple[int, ...], norm: str) -> nn.Module:
    _require_image("digits_cnn", shape, least_side=4)
    pools = (False, True)
    return SmallCNN(shape, num_classes, (32, 64), pools, hidden=0, norm=norm_layer(norm, 4))


def _mlp(num_classes: int, shape: tuple[int, ...], norm: str, hidden: tuple[int, ...]) -> nn.Module:
    if norm != "group":  # "group" is the default of the configuration; other values are explicit requests
        raise ModelError(f"norm is {norm!r}, but model 'mlp' has no norm layers; leave norm at 'group'")
    return MLP(shape, num_classes, hidden)


_BUILDERS: Mapping[str, Builder] = MappingProxyType(
    {
        "resnet18": _imagenet_style("resnet18", BasicBlock, (2, 2, 2, 2)),
        "resnet34": _imagenet_style("resnet34", BasicBlock, (3, 4, 6, 3)),
        "resnet50": _imagenet_style("resnet50", Bottleneck, (3, 4, 6, 3)),
        "tiny_resnet18": _imagenet_style("tiny_resnet18", BasicBlock, (2, 2, 2, 2)),
        "resnet8": _cifar_style("resnet8", blocks_per_stage=1),
        "resnet20": _cifar_style("resnet20", blocks_per_stage=3),
        "cnn": _cnn,
        "digits_cnn": _digits_cnn,
        "mlp": partial(_mlp, hidden=(200, 200)),
    }
)
MODEL_NAMES: tuple[str, ...] = tuple(_BUILDERS)
