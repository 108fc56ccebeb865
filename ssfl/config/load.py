"""conf/*.yaml and the command line → one checked `Config`, and back to text for the run folder.

Hydra's compose API chooses and merges the files; the values of the command line are then set one by one, so that an
error can name the key, the value and the nearest existing key. (`@hydra.main` would create folders and change the
working directory before the configuration is checked.) The method's keys are set last, because reading them imports
the method's file and therefore torch.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast, get_type_hints

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import ssfl
from ssfl.algorithms.method import Method, MethodError
from ssfl.algorithms.table import METHODS, find_method
from ssfl.config.communication import codecs_ignore, in_effect
from ssfl.config.errors import ConfigError, ConfigWarning, near_match
from ssfl.config.keys import (
    PARAMS,
    common_keys,
    keys_of,
    method_keys,
    other_methods_keys,
    overridden_keys,
    unread_keys,
    value_of,
)
from ssfl.config.overrides import GROUPS, MODE_GROUP, Typed, parse_words, split
from ssfl.config.schema import AlgorithmConfig, Config
from ssfl.config.validate import refuse, validate
from ssfl.settings import Setting, is_small
from ssfl.yaml_text import YamlError, read_yaml

HARMLESS = (
    "checkpoint.*",
    "communication.measure",
    "communication.link_*",
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
"""Keys that do not change a run's numbers; `config_digest` omits them."""
NAME = "algorithm.name"


def conf_dir() -> Path:
    """The folder of YAML files: inside an installed package, or next to the package in a checkout."""
    package = Path(ssfl.__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "base.yaml").is_file():
            return folder
    raise ConfigError(
        "conf", f"conf/base.yaml is missing next to {package}: install ssfl again (bash setup.sh)"
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
    words = split(parse_words(overrides), conf)
    tree = _with_defaults(_compose(conf, words.groups))
    for typed in words.values:
        if not typed.key.startswith(PARAMS):
            _set(tree, typed, common_keys())
    _mode_as_value(tree, words.groups)
    return _finished(tree, [typed for typed in words.values if typed.key.startswith(PARAMS)], words.values)


def config_to_yaml(config: Config) -> str:
    """The whole configuration as YAML; `config_from_yaml` is the inverse."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def config_from_yaml(text: str) -> Config:
    """A configuration from the YAML of a run folder; keys that it lacks take their defaults.

    Raises:
        ConfigError: not YAML, unknown key, wrong type, impossible value.
    """
    tree = _with_defaults(OmegaConf.create({}))
    found = [Typed(key, value, "") for key, value in stored_values(text)]
    for typed in found:
        if not typed.key.startswith(PARAMS):
            _set(tree, typed, common_keys())
    return _finished(tree, [typed for typed in found if typed.key.startswith(PARAMS)], [])


def stored_values(text: str) -> list[tuple[str, Any]]:
    """Dotted keys with their values, unchecked, in the order of the YAML. Raises ConfigError where it has none."""
    try:
        stored = read_yaml(text)
    except YamlError as error:
        raise ConfigError("config", str(error)) from None
    if not isinstance(stored, dict) or not stored:
        raise ConfigError("config", "stored configuration must be a mapping of sections")
    return list(_leaves(stored))


def config_digest(config: Config) -> str:
    """16 hex digits that two configurations share if and only if they give the same numbers.

    `HARMLESS` keys and keys that the run does not read are not part of it.
    """
    values = deciding_values(config)
    text = "\n".join(f"{key}={values[key]!r}" for key in sorted(values))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def deciding_values(config: Config) -> dict[str, Any]:
    """The keys that numbers depend on, with their values; `auto` of a codec is resolved."""
    left_out = (*HARMLESS, *unread_keys(config))
    kept = [key for key in keys_of(config) if not any(fnmatchcase(key, pattern) for pattern in left_out)]
    resolved = in_effect(config)
    return {key: resolved.get(key, value_of(config, key)) for key in kept}


def read_config(path: Path) -> Config:
    """The configuration in a run folder's file. Raises ConfigError, which names the file."""
    try:
        return config_from_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("config", f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # from the configuration, or a text that is not UTF-8
        raise ConfigError("config", f"{path}: {error}") from None


# ── the tree: every key with its value from the command line, the files, or its default ──────────────────────────
def _with_defaults(given: DictConfig) -> DictConfig:
    """The common keys' defaults with `given` on top; a given key that does not exist is refused."""
    tree = OmegaConf.create({})
    for key, declared in common_keys().items():
        OmegaConf.update(tree, key, declared.default)
    OmegaConf.update(tree, "algorithm.params", {})
    for key, value in _leaves(cast(Mapping[str, Any], OmegaConf.to_container(given))):
        if key.startswith(PARAMS):
            OmegaConf.update(tree, key, value)
        else:
            _set(tree, Typed(key, value, ""), common_keys())
    return tree


def _compose(conf: Path, groups: Mapping[str, str]) -> DictConfig:
    chosen = [f"{group}={name}" for group, name in groups.items() if group != MODE_GROUP]
    try:
        with warnings.catch_warnings(), initialize_config_dir(str(conf), version_base="1.3", job_name="ssfl"):
            warnings.simplefilter("ignore")
            return compose("base", overrides=chosen)
    except HydraException as error:
        raise ConfigError("conf", f"conf/ cannot be composed: {error}") from None


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _set(tree: DictConfig, typed: Typed, known: Mapping[str, Setting]) -> None:
    key, value, text = typed
    if key not in known:
        raise _unknown(key, text, known)
    try:
        OmegaConf.update(tree, key, _coerced(value, text, known[key]))
    except OmegaConfBaseException:
        raise refuse(
            key, text or value, "a reference that cannot be read; write ${KEY}, such as ${model.dense_ratio}"
        ) from None
    # References are checked when the method's keys are there too, except the name that decides which these are.
    if key == NAME or not (isinstance(value, str) and "${" in value):
        _checked(tree, key, text, known[key])


def _unknown(key: str, text: str, known: Mapping[str, Setting]) -> ConfigError:
    inside = next((name for name in known if name.startswith(f"{key}.")), None)
    if inside is not None:
        return ConfigError(key, f"{key}={text}: is a section; set one of its keys, such as {inside}=...")
    close = near_match(key, (*known, *GROUPS))
    return ConfigError(key, f"{key}={text}: no such key{close}; `ssfl keys` and conf/base.yaml list them all")


def _checked(tree: DictConfig, key: str, text: str, declared: Setting) -> Any:
    """The value at a key with its references resolved. Raises ConfigError for a bad reference or value."""
    try:
        value = _coerced(OmegaConf.select(tree, key), "", declared)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0].rpartition("resolving interpolation: ")[2]
        shown = text or _unresolved(tree, key)
        raise ConfigError(key, f"{key}={shown}: must be {declared.allowed} ({reason})") from None
    problem = declared.problem(value)
    if problem is not None:
        close = near_match(value, declared.words) if isinstance(value, str) else ""
        empty = "has no value; " if value == "" else ""
        raise refuse(key, text or value, empty + problem + close)
    return value


def _unresolved(tree: DictConfig, key: str) -> object:
    """The value at a key as it was written."""
    section, _, name = key.rpartition(".")
    return cast(Mapping[str, Any], OmegaConf.to_container(OmegaConf.select(tree, section)))[name]


def _coerced(value: Any, text: str, declared: Setting) -> Any:
    """The value converted to the setting's type; unchanged if that would lose information."""
    if declared.kind is str and text and isinstance(value, bool | int | float):
        return text  # a name made of digits stays as typed
    if isinstance(value, str) and value not in declared.words and "${" not in value:
        if declared.kind in (int, float):
            value = _number(value)
        elif declared.kind is bool:
            value = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.get(
                value.lower(), value
            )
    if declared.kind is float and isinstance(value, int) and not isinstance(value, bool) and is_small(value):
        return float(value)
    return value


def _number(text: str) -> Any:
    """Converts numbers in quotes or in YAML's text form; other words are returned, and the type check refuses them."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


# ── the method's keys ────────────────────────────────────────────────────────────────────────────────────────────
def _finished(tree: DictConfig, params: Sequence[Typed], given: Sequence[Typed]) -> Config:
    """The configuration from a tree with common keys: sets the method's keys, then runs all checks."""
    name = str(OmegaConf.select(tree, NAME))
    method, known = _method(name)
    stored = cast(Mapping[str, Any], OmegaConf.to_container(tree.algorithm.params))
    OmegaConf.update(tree, "algorithm.params", {}, merge=False)
    for key, declared in known.items():
        OmegaConf.update(tree, key, declared.default)
    for typed in [*(Typed(PARAMS + key, value, "") for key, value in stored.items()), *params]:
        if typed.key in known:
            _set(tree, typed, known)
        elif typed.key not in other_methods_keys(name):
            raise _unknown(typed.key, typed.text, {**common_keys(), **known})
    config = _to_config(tree, name, method, known)
    validate(config)
    _warn_unread(config, [typed.key for typed in given])
    return config


def _method(name: str) -> tuple[Method, Mapping[str, Setting]]:
    try:
        if ":" not in name and name not in METHODS:
            close = near_match(name, METHODS)
            allowed = (
                f"must be one of {', '.join(METHODS)}, or package.module:CLASS for a custom method{close}"
            )
            raise refuse("algorithm", name, allowed)
        return find_method(name), method_keys(name)
    except MethodError as error:
        raise ConfigError("algorithm", str(error)) from error


def _mode_as_value(tree: DictConfig, groups: Mapping[str, str]) -> None:
    """`algorithm/mode=X` is another spelling of algorithm.params.mode=X."""
    if MODE_GROUP not in groups:
        return
    name, mode, key = str(OmegaConf.select(tree, NAME)), groups[MODE_GROUP], f"{PARAMS}mode"
    known = _method(name)[1]
    if key not in known:
        raise refuse(MODE_GROUP, mode, f"algorithm={name} has no mask modes; use algorithm=ssfl")
    problem = known[key].problem(mode)
    if problem is not None:
        raise refuse(MODE_GROUP, mode, problem + near_match(mode, known[key].words))
    OmegaConf.update(tree, key, mode)


def _to_config(tree: DictConfig, name: str, method: Method, known: Mapping[str, Setting]) -> Config:
    params = {key.removeprefix(PARAMS): _checked(tree, key, "", declared) for key, declared in known.items()}
    sections: dict[str, Any] = {"algorithm": AlgorithmConfig(name, method.settings(**params))}
    kinds = get_type_hints(Config)
    for section in fields(Config):
        if section.name != "algorithm":
            keys = {k: d for k, d in common_keys().items() if k.startswith(f"{section.name}.")}
            values = {d.name: _checked(tree, key, "", d) for key, d in keys.items()}
            sections[section.name] = kinds[section.name](**values)
    return Config(**sections)


def _warn_unread(config: Config, keys: Sequence[str]) -> None:
    name = config.algorithm.name
    leftovers = {key for key, declared in common_keys().items() if declared.unread}
    ignored = {*config.algorithm.unread_keys, *other_methods_keys(name)}
    by_settings = {*config.algorithm.method.unread(config.algorithm.params)}
    by_codecs, by_others = codecs_ignore(config), overridden_keys(config)
    for key in keys:
        if key in leftovers:
            text = f"{key} has no effect: it is a leftover of the published configuration that is not read"
        elif key in by_settings:
            text = f"{key} has no effect with the other settings of algorithm={name}"
        elif key in ignored:
            text = f"{key} has no effect: algorithm={name} does not read it"
        elif key in by_codecs:
            text = f"{key} has no effect with the other settings of communication"
        elif key in by_others:
            text = f"{key} has no effect with the other settings of {key.partition('.')[0]}"
        else:
            continue
        warnings.warn(text, ConfigWarning, stacklevel=3)
