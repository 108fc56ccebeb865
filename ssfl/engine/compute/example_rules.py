"""How a network treats a minibatch: whether it accepts a single example, and whether examples affect each other.

For ordinary layers this is known. Other networks are tried: a copy runs random examples.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssfl.core.cost import float_tensor

_ORDINARY = (
    nn.AdaptiveAvgPool2d,
    nn.AvgPool2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.Conv1d,
    nn.Conv2d,
    nn.Dropout,
    nn.Flatten,
    nn.GroupNorm,
    nn.Identity,
    nn.LayerNorm,
    nn.Linear,
    nn.MaxPool2d,
    nn.ModuleList,
    nn.ReLU,
    nn.Sequential,
)
_OURS = "ssfl.models."
EXAMPLES = 4
"""Size of the trial minibatch."""


@final
@dataclass(frozen=True)
class ExampleRules:
    """Whether a network needs two or more examples at once, in training and in evaluation."""

    two_in_training: bool = False
    two_in_evaluation: bool = False


def is_ordinary(module: nn.Module) -> bool:
    """Whether all layers are the usual ones, combined by `nn.Sequential` or by `ssfl.models`."""
    return all(map(_is_ordinary, module.modules())) and all(p.requires_grad for p in module.parameters())


def _is_ordinary(layer: nn.Module) -> bool:
    if layer._forward_hooks or layer._forward_pre_hooks:
        return False
    if isinstance(layer, _BatchNorm) and (layer.momentum is None or not layer.track_running_stats):
        return False
    return type(layer) in _ORDINARY or type(layer).__module__.startswith(_OURS)


def example_rules(
    module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> ExampleRules:
    """The rules of a network for examples of `input_shape`; dtype: of its input if that is not a float."""
    batch_norm = any(isinstance(layer, _BatchNorm) for layer in module.modules())
    if is_ordinary(module) and not batch_norm:
        return ExampleRules()
    trial = copy.deepcopy(module)

    def needs_two(training: bool) -> bool:
        trial.train(training)
        one, two = (made_up(trial, input_shape, count, dtype) for count in (1, 2))
        return not _computes(trial, one) and _computes(trial, two)

    with torch.random.fork_rng(devices=[]):
        return ExampleRules(needs_two(training=True), needs_two(training=False))


def _computes(module: nn.Module, x: Tensor) -> bool:
    try:
        with torch.no_grad():
            module(x)
    except Exception:  # a layer may raise any error
        return False
    return True


def made_up(
    module: nn.Module,
    input_shape: tuple[int, ...],
    count: int,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Tensor:
    """Examples [count, ...]: normal in the module's float type, or 0 and 1 for an integer dtype."""
    like, generator = float_tensor(module), torch.Generator().manual_seed(seed)
    if dtype is None or dtype.is_floating_point:
        return torch.randn(count, *input_shape, generator=generator).to(like.device, like.dtype)
    return torch.randint(0, 2, (count, *input_shape), generator=generator).to(like.device, dtype)


def draws_in_training(
    module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> bool:
    """Whether a forward pass in training changes the state of PyTorch's generator (dropout, stochastic depth)."""
    trial = copy.deepcopy(module).train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.default_generator.get_state()
        trial(made_up(trial, input_shape, 2, dtype))
        return not torch.default_generator.get_state().equal(before)


def couples_examples(
    module: nn.Module, input_shape: tuple[int, ...], training: bool, dtype: torch.dtype | None = None
) -> bool:
    """Whether an example's output depends on the others of its minibatch."""
    if is_ordinary(module):
        return training and any(isinstance(layer, _BatchNorm) for layer in module.modules())
    trial = copy.deepcopy(module).train(training)
    one, others, more = (made_up(trial, input_shape, EXAMPLES, dtype, seed) for seed in (0, 1, 2))
    outputs = []
    for company in (others, more):
        with _same_draws(), torch.no_grad():
            outputs.append(copy.deepcopy(trial)(torch.cat([one[:1], company[1:]]))[0])
    return not torch.allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)


@contextmanager
def _same_draws() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def joined_last(batches: Iterator[tuple[Tensor, Tensor]], drop: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """The same minibatches, but a last one of a single example is joined to the previous one, or dropped.

    If there is no previous one, it is dropped.
    """
    held: tuple[Tensor, Tensor] | None = None
    for x, y in batches:
        if len(y) > 1:
            if held is not None:
                yield held
            held = x, y
        elif held is not None and not drop:
            held = torch.cat([held[0], x]), torch.cat([held[1], y])
    if held is not None:
        yield held


def doubled(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`forward` of one example for a network that needs two: the example is passed twice."""
    return forward(torch.cat([x, x]))[:1]
