"""Every key of the configuration with its declared setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache, reduce
from types import MappingProxyType
from typing import Any, get_type_hints

from ssfl.algorithms.table import METHODS, find_method
from ssfl.config.communication import codecs_ignore
from ssfl.config.schema import Config
from ssfl.settings import Setting, settings_of

PARAMS = "algorithm.params."


@cache
def common_keys() -> Mapping[str, Setting]:
    """Keys that do not depend on the method, in the order of the schema."""
    sections = get_type_hints(Config)
    return MappingProxyType(
        {
            f"{section.name}.{name}": declared
            for section in fields(Config)
            for name, declared in settings_of(sections[section.name]).items()
        }
    )


@cache
def method_keys(name: str) -> Mapping[str, Setting]:
    """The keys of one method's settings. Raises MethodError if there is no such method."""
    own = settings_of(find_method(name).settings)
    return MappingProxyType({f"{PARAMS}{key}": declared for key, declared in own.items()})


@cache
def other_methods_keys(name: str) -> frozenset[str]:
    """Keys of the table's other methods that this one lacks: setting one has no effect and is not an error."""
    every = {key for method in METHODS for key in method_keys(method)}
    return frozenset(every - set(method_keys(name)))


def keys_of(config: Config) -> Mapping[str, Setting]:
    """All keys of a configuration."""
    return {**common_keys(), **method_keys(config.algorithm.name)}


def unread_keys(config: Config) -> tuple[str, ...]:
    """Keys of a configuration without effect on its numbers: leftovers, and those that its method and its codecs do
    not read."""
    leftovers = [key for key, declared in common_keys().items() if declared.unread]
    counted = ("training.client_num_in_total",) if config.dataset.partition_method == "natural" else ()
    return (
        *leftovers,
        *counted,
        *overridden_keys(config),
        *config.algorithm.unread_keys,
        *codecs_ignore(config),
    )


def overridden_keys(config: Config) -> tuple[str, ...]:
    """Keys of the recipe and the partition that other keys leave without effect."""
    scheduler = config.optimizer.scheduler
    unread = {
        "optimizer.lr_decay": scheduler != "default",
        "optimizer.final_lr": scheduler != "geometric",
        "optimizer.scheduler_cycle_len": scheduler != "cosine_annealing",
        "training.frac": config.training.client_num_per_round != -1,
        "dataset.partition_alpha": config.dataset.partition_method in ("iid", "natural"),
    }
    return tuple(key for key, is_unread in unread.items() if is_unread)


def value_of(config: Config, key: str) -> Any:
    """The value at a dotted key."""
    return reduce(getattr, key.split("."), config)
