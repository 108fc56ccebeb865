"""conf/*.yaml and the command line → one checked `Config`, and back to text for the run folder.

Hydra's compose API chooses and merges the files; the values of the command line are then set one by one on the
typed schema, so that a complaint can name the key, the value and the nearest key that exists. (`@hydra.main` would
create folders and change the working directory before we had checked anything.)
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import ssfl
from ssfl.config.errors import ConfigError, ConfigWarning, near_match
from ssfl.config.overrides import GROUPS, parse_words, split
from ssfl.config.schema import LEFTOVERS, Config
from ssfl.config.validate import CHOICES, RANGES, validate

HARMLESS = (
    "checkpoint.*",
    "dataset.data_dir",
    "engine.workers",
    "engine.threads",
    "experiment.output_dir",
    "experiment.tag",
    "experiment.debug_mode",
    "experiment.gpu",
    "tracking.*",
    "training.max_workers",
    "wandb.*",
)
"""Keys that decide where and how a run is watched, never its numbers; `config_digest` leaves them out."""


def conf_dir() -> Path:
    """The folder of YAML files: inside an installed package, or beside the package in a checkout."""
    package = Path(ssfl.__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "base.yaml").is_file():
            return folder
    raise ConfigError(
        "conf", f"conf/base.yaml is missing beside {package}: install ssfl again (bash setup.sh)"
    )


def load_config(overrides: Sequence[str] = ()) -> Config:
    """The configuration of one run.

    Args:
        overrides: words of the command line in Hydra's grammar: `KEY=VALUE`, `GROUP=NAME`, `GROUP/SUB=NAME`.

    Raises:
        ConfigError: unknown key, wrong type, impossible value; one line.

    Warns:
        ConfigWarning: a key was set that this run does not read.
    """
    conf = conf_dir()
    groups, values = split(parse_words(overrides), conf)
    tree = _schema()
    tree.merge_with(_compose(conf, groups))
    for key, value, text in values:
        _set(tree, key, value, text)
    config = _to_config(tree)
    validate(config)
    _warn_unread(config, [key for key, _, _ in values])
    return config


def config_to_yaml(config: Config) -> str:
    """The whole configuration as YAML; `config_from_yaml` reads it back equal."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def config_from_yaml(text: str) -> Config:
    """A configuration from the YAML of a run folder; keys that it lacks take their defaults.

    Raises:
        ConfigError: not YAML, unknown key, wrong type, impossible value.
    """
    try:
        stored = OmegaConf.create(text)
    except Exception as error:  # whichever parser complains, the file is at fault
        raise ConfigError("config", f"stored configuration is not YAML: {error}") from None
    tree = _schema()
    if not isinstance(stored, DictConfig):
        raise ConfigError("config", "stored configuration must be a mapping of sections")
    for key in _leaves(stored):
        _set(tree, key, OmegaConf.select(stored, key), "")
    config = _to_config(tree)
    validate(config)
    return config


def config_digest(config: Config) -> str:
    """16 hex digits that two configurations share if and only if they ask for the same numbers.

    Left out are `HARMLESS` keys, leftovers, and what the algorithm says that it ignores.
    """
    tree = cast(DictConfig, OmegaConf.structured(config))
    left_out = (*HARMLESS, *LEFTOVERS, *config.algorithm.ignores, "algorithm.ignores")
    kept = [key for key in _leaves(tree) if not any(fnmatchcase(key, pattern) for pattern in left_out)]
    text = "\n".join(f"{key}={OmegaConf.select(tree, key)!r}" for key in sorted(kept))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _schema() -> DictConfig:
    """The typed tree. Frozen dataclasses come out of OmegaConf read-only: lifted while we fill it."""
    tree = cast(DictConfig, OmegaConf.structured(Config))
    _unlock(tree)
    return tree


def _unlock(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, None)
    for key in node:
        if OmegaConf.is_dict(node[key]):
            _unlock(node[key])


def _compose(conf: Path, groups: dict[str, str]) -> DictConfig:
    chosen = [f"{group}={name}" for group, name in groups.items()]
    try:
        with warnings.catch_warnings(), initialize_config_dir(str(conf), version_base="1.3", job_name="ssfl"):
            warnings.simplefilter("ignore")
            return compose("base", overrides=chosen)
    except HydraException as error:
        if "algorithm/mode" in groups and "algorithm/mode" in str(error):
            allowed = (
                f"algorithm={groups.get('algorithm', 'of the preset')} has no mask modes; use algorithm=ssfl"
            )
            raise ConfigError(
                "algorithm/mode", f"algorithm/mode={groups['algorithm/mode']}: {allowed}"
            ) from None
        raise ConfigError("conf", f"conf/ cannot be composed: {error}") from None


def _leaves(tree: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in map(str, tree):
        key = f"{prefix}{name}"
        if OmegaConf.is_dict(tree._get_node(name)) and not OmegaConf.is_missing(tree, name):
            yield from _leaves(tree[name], f"{key}.")
        else:
            yield key


def _set(tree: DictConfig, key: str, value: Any, text: str) -> None:
    known = list(_leaves(tree))
    if key not in known:
        sections = {name.rsplit(".", 1)[0] for name in known}
        if key in sections:
            raise ConfigError(
                key, f"{key}={text}: is a section; set one of its keys, such as {_first(known, key)}=..."
            )
        close = near_match(key, (*known, *GROUPS))
        raise ConfigError(
            key, f"{key}={text}: no such key{close}; docs/configuration.md and conf/base.yaml list them all"
        )
    if isinstance(OmegaConf.select(tree, key), str) and text and isinstance(value, bool | int | float):
        value = text  # a name made of digits stays as it was typed
    if isinstance(value, str) and key in RANGES:
        value = _number(value)
    try:
        OmegaConf.update(tree, key, value)
        OmegaConf.select(tree, key)  # resolves ${...} now, so that the complaint names this key
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(key, f"{key}={text or value}: {_wanted(tree, key)} ({reason})") from None


def _first(known: Sequence[str], section: str) -> str:
    return next(name for name in known if name.startswith(f"{section}."))


def _number(text: str) -> Any:
    """Numbers in quotes or in YAML's text form; other words stay words, for the type check to refuse."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def _wanted(tree: DictConfig, key: str) -> str:
    if key in CHOICES:
        return f"must be one of {', '.join(CHOICES[key])}"
    section, _, name = key.rpartition(".")
    hint = get_type_hints(type(OmegaConf.to_object(OmegaConf.select(_schema(), section))))[name]
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    kind = words.get(hint, "a list of text" if "list" in str(hint) else "a whole number")
    return f"must be {kind}" + (f", {RANGES[key]}" if key in RANGES else "")


def _to_config(tree: DictConfig) -> Config:
    try:
        return cast(Config, OmegaConf.to_object(tree))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(str(error.full_key or "config"), f"{error.full_key}: {reason}") from None


def _warn_unread(config: Config, keys: Sequence[str]) -> None:
    name = config.algorithm.name
    for key in keys:
        if key in LEFTOVERS:
            text = f"{key} is a leftover of the published configuration that nothing reads: it has no effect"
        elif any(fnmatchcase(key, pattern) for pattern in config.algorithm.ignores):
            text = f"{key} has no effect: algorithm={name} does not read it"
        else:
            continue
        warnings.warn(text, ConfigWarning, stacklevel=3)
