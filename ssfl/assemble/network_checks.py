"""Checks that a run's network can be trained on its data, by one trial on copies before files are written."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ssfl.algorithms.base import Algorithm, ServerContext
from ssfl.assemble.checked_method import CheckedMethod
from ssfl.assemble.communication import wire_of
from ssfl.assemble.method_trial import Bench, try_method
from ssfl.config import Config
from ssfl.config.validate import refuse
from ssfl.core.tensor_roles import LayoutError
from ssfl.engine.client.data_source import DataSource, input_dtype
from ssfl.engine.compute.example_rules import example_rules
from ssfl.engine.executors.task_trial import TaskError, check_tasks, first_works, needs_works
from ssfl.engine.executors.trial import UntrainableError, check_constants
from ssfl.models import ModelError
from ssfl.models.own import token_hint


def check_network(config: Config, federation: DataSource, module: nn.Module) -> None:
    """Try one training step and one evaluation. Raises ModelError or ConfigError, in one line, if they fail."""
    shape, dtype = federation.input_shape, input_dtype(federation)
    try:
        check_constants(module, shape, dtype)
    except (LayoutError, UntrainableError) as error:
        raise ModelError(f"model {config.model.name!r}: {error}{token_hint(module, dtype)}") from error
    if config.training.batch_size == 1 and example_rules(module, shape, dtype).two_in_training:
        allowed = "2 or more: a layer of this network (BatchNorm) does not train on one example"
        raise refuse("training.batch_size", 1, allowed)


def check_method(
    config: Config,
    federation: DataSource,
    module: nn.Module,
    algorithm: Algorithm[Any],
    theta: Tensor,
    context: ServerContext,
) -> None:
    """Try a step of each of the method's tasks on the network. Raises ConfigError, in one line, if one fails.

    For a method from outside the package, the first exchanges are tried too, without training.
    """
    shape, dtype, tasks = federation.input_shape, input_dtype(federation), algorithm.tasks
    if isinstance(algorithm, CheckedMethod):
        wire = wire_of(config, context.layout)
        try_method(config, algorithm, Bench(module, shape, dtype), theta, context, wire)
    tried = needs_works(tasks, module)
    works = first_works(algorithm, theta, context, config.training.comm_round) if tried else {}
    try:
        check_tasks(module, shape, dtype, tasks, works)
    except TaskError as error:
        name, remedy = config.algorithm.name, "use another algorithm or network"
        if error.probes:
            remedy = "score by another saliency, such as algorithm.params.method=ssfl, or change the network"
        elif error.prepares:
            remedy = (
                "the method replaces layers of the network; a setting in algorithm.params may disable that"
            )
        raise refuse("algorithm.name", name, f"{error}; {remedy}") from error


def lone_examples_text(config: Config, federation: DataSource, module: nn.Module) -> str:
    """A note on how last minibatches of one example are treated; empty if none needs a special treatment."""
    size = config.training.batch_size
    lone = [k for k in range(federation.num_clients) if federation.examples(k) % size == 1]
    if not lone or not example_rules(module, federation.input_shape, input_dtype(federation)).two_in_training:
        return ""
    done = {"join": "it joins the previous minibatch", "drop": "it is dropped"}[config.training.lone_example]
    clients = "client" if len(lone) == 1 else "clients"
    return (
        f"the last minibatch of {len(lone)} {clients} has one example, which BatchNorm does not train on: {done} "
        f"(training.lone_example={config.training.lone_example})"
    )
