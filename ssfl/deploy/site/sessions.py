"""A run at a site: built from the site's code and data and the parts of the run's configuration that apply there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from ssfl.algorithms.base import Algorithm, ServerContext
from ssfl.assemble.build import RunSetup, algorithm_of, module_of
from ssfl.assemble.communication import wire_of
from ssfl.assemble.execution import resolve_engine, runner_of
from ssfl.config import Config, config_from_yaml, stored_values
from ssfl.core.layout import Layout
from ssfl.deploy.errors import DeployError
from ssfl.deploy.protocol import messages
from ssfl.deploy.protocol.payloads import digest_of
from ssfl.deploy.site.data import SiteData
from ssfl.deploy.site.kept_states import KeptStates, is_run_name
from ssfl.engine.client.runner import ClientRunner


@dataclass(frozen=True)
class SiteOptions:
    """Options set by the site's operator."""

    own_model: str = ""
    """A local network class that runs may use, package.module:Class; empty: only those of ssfl.models."""
    own_method: str = ""
    """A local method that runs may use, package.module:NAME; empty: only those of ssfl.algorithms.table."""
    threads: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    state_folder: Path | None = None


@dataclass
class Session:
    """A run that a site has joined."""

    join: messages.Join
    algorithm: Algorithm[Any]
    runner: ClientRunner
    states: KeptStates
    joined: messages.Joined
    about: str = ""
    """For the log: method and network."""


Builder = Callable[[messages.Join], Session]
"""Builds a session; raises UserError."""


def builder_of(data: SiteData, options: SiteOptions) -> Builder:
    """Builds sessions on this data. No received code is executed: a configuration selects from what is installed."""

    def build(join: messages.Join) -> Session:
        if not is_run_name(join.run):
            raise DeployError(f"run {join.run!r:.60}: not a valid run name")
        config = accepted(join.config, options)
        own = data.with_classes(join.class_names)
        unchanged = config.dataset.features == "unchanged"
        federation = own.federation(join.client, join.scaling, unchanged)
        module = module_of(config, federation)
        layout = Layout.of(module)
        algorithm = algorithm_of(config, layout)
        context = ServerContext(layout, {join.client: own.examples}, config.experiment.seed)
        theta, wire = layout.flatten(module), wire_of(config, layout)
        setup = RunSetup(config, federation, module, layout, theta, algorithm, context, wire)
        setup = replace(setup, config=resolve_engine(config, setup))
        torch.set_num_threads(options.threads)
        joined = messages.Joined(
            join.run,
            join.client,
            own.examples,
            own.test_examples,
            own.arrays.num_classes,
            own.input_shape,
            layout.digest.hex(),
            digest_of([name.encode() for name in own.arrays.class_names]),
            inputs=messages.inputs_name(unchanged, federation.input_dtype),
        )
        about = f"{config.algorithm.name}, {config.model.name}"
        states = KeptStates(options.state_folder, join.run)
        return Session(join, algorithm, runner_of(setup), states, joined, about)

    return build


def accepted(text: str, options: SiteOptions) -> Config:
    """The run's configuration with the engine settings of this site. Raises DeployError, ConfigError."""
    if "${" in text:
        raise DeployError(
            "the run's configuration contains references (${...}); a server must send resolved values"
        )
    if _has_aliases(text):
        raise DeployError("the run's configuration contains YAML aliases, which could expand without limit")
    _check_own(text, options)
    config = config_from_yaml(text)
    engine = replace(
        config.engine, executor="sequential", workers=1, block=1, device=options.device, threads=1
    )
    return replace(config, engine=engine)


def _check_own(text: str, options: SiteOptions) -> None:
    """Refuse a custom network or method unless the operator allows it, before a look-up imports its module."""
    allowed = {"model.name": ("network", options.own_model), "algorithm.name": ("method", options.own_method)}
    for key, value in stored_values(text):
        what, own = allowed.get(key, ("", ""))
        name = str(value)
        if what and ("." in name or ":" in name) and name != own:
            raise DeployError(
                f"{key}={name}: a custom {what} is used at a site only if the site's operator allows it: "
                f"ssfl deploy site --{key.partition('.')[0]} {name}"
            )


def _has_aliases(text: str) -> bool:
    try:
        return any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text))
    except yaml.YAMLError:
        return False  # `config_from_yaml` reports what is wrong
