"""One training step and one evaluation of a network on a copy and random examples, before a run begins."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _NormBase

from ssfl.core.layout import Layout
from ssfl.core.tensor_roles import LayoutError, fixed_state
from ssfl.engine.compute.arithmetic import channels_last
from ssfl.engine.compute.example_rules import EXAMPLES, is_ordinary, made_up
from ssfl.engine.compute.flat_module import FlatModule
from ssfl.errors import UserError

Kernels = Callable[[nn.Module], contextlib.AbstractContextManager[None]]
"""The context in which a network computes with the kernels, or without."""


class UntrainableError(UserError):
    """The network fails in a training step or an evaluation; the message contains the error."""


def no_kernels(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """PyTorch's own layers."""
    return contextlib.nullcontext()


def check_step(
    module: nn.Module,
    input_shape: tuple[int, ...],
    dtype: torch.dtype | None = None,
    last: bool = False,
    kernels: Kernels = no_kernels,
) -> None:
    """Raises UntrainableError if a training step or an evaluation fails; networks of the usual layers are not tried.

    dtype: of the inputs, if they are not floats. last: images with channels last.
    """
    if not is_ordinary(module):
        with errors_in_one_line():
            _step_and_evaluate(copy.deepcopy(module), input_shape, dtype, last, kernels)


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turn any error of the network's code into an UntrainableError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        words = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UntrainableError(f"this network fails in a training step or an evaluation ({words})") from error


def check_constants(
    module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> None:
    """Raises LayoutError if training changes a part of the state that is not sent (with the tensor's name), or draws
    from Python's or numpy's global generator, which the run's seed does not set."""
    if is_ordinary(module):
        return
    trial = copy.deepcopy(module)
    idle = _idle_counters(trial)
    before = {name: value.clone() for name, value in fixed_state(trial).items() if name not in idle}
    generators = _other_generators()
    with errors_in_one_line():
        _step_and_evaluate(trial, input_shape, dtype, False, no_kernels)
    if _other_generators() != generators:
        raise LayoutError(
            "the network draws from Python's or numpy's global generator, which the run's seed does not set; draw with "
            "torch (torch.rand)"
        )
    after = trial.state_dict()
    for name, value in before.items():
        if not _same(value, after[name]):
            kind = str(value.dtype).removeprefix("torch.")
            raise LayoutError(
                f"training changes {name} ({kind}), which clients cannot average; make it a buffer of finite "
                "floats, which is averaged, or one that is not saved (persistent=False), which every client starts "
                "from its initial value"
            )


def _step_and_evaluate(
    module: nn.Module,
    input_shape: tuple[int, ...],
    dtype: torch.dtype | None,
    last: bool,
    kernels: Kernels,
) -> None:
    flat = FlatModule(module, Layout.of(module))
    x = made_up(module, input_shape, EXAMPLES, dtype)
    x = channels_last(x) if last and x.dim() == 4 else x
    with torch.random.fork_rng(devices=[]), kernels(module):
        flat.set_training(False)
        with torch.inference_mode():
            classes = module(x.clone()).shape[1]
        flat.set_training(True)
        labels = torch.arange(len(x), device=x.device).remainder(classes)
        torch.autograd.backward(cross_entropy(module(x.clone()), labels))
        flat.take_gradient()


def _other_generators() -> tuple[object, ...]:
    """The states of Python's and numpy's global generators, comparable."""
    numpys = np.random.get_state(legacy=False)
    words = numpys["state"]
    return random.getstate(), words["key"].tobytes(), words["pos"], numpys["has_gauss"]


def _idle_counters(module: nn.Module) -> set[str]:
    """Batch counters that are not read: norm layers with a fixed momentum also count batches."""
    return {
        f"{name}.num_batches_tracked".lstrip(".")
        for name, layer in module.named_modules(remove_duplicate=False)
        if isinstance(layer, _NormBase) and layer.momentum is not None
    }


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal; NaN equals NaN."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
