"""Checks the configuration: first each value by its declared setting, then combinations of keys."""

from __future__ import annotations

import re
from typing import Any

from ssfl.config.communication import LOSSY, TRACKED, codecs_of
from ssfl.config.engine import conflicts
from ssfl.config.errors import ConfigError, near_match
from ssfl.config.keys import PARAMS, keys_of, value_of
from ssfl.config.schema import Config
from ssfl.settings import Setting, SettingError

_NAME = re.compile(r"[\w.+=@-][\w.+=@, -]*")


def cohort_size(config: Config) -> int:
    """Clients per round: `client_num_per_round`, or int(client_num_in_total * frac) as in the authors' code.

    The product is rounded to nine places first, so that 100 clients at 0.29 give 29 and not 28 (their product is
    28.999... in floating point).
    """
    training = config.training
    if training.client_num_per_round != -1:
        return training.client_num_per_round
    return int(round(training.client_num_in_total * training.frac, 9))


def fine_tune_epochs(config: Config) -> int:
    """Local epochs of the fine-tuning after the last round; -1 means `training.epochs`."""
    asked = config.training.fine_tune_epochs
    return config.training.epochs if asked == -1 else asked


def validate(config: Config) -> None:
    """Refuse a configuration that no run could use.

    Settings that depend on the data (classes, examples, sites) are checked later, by `ssfl.data`.

    Raises:
        ConfigError: one line with the key, its value and what is allowed.
    """
    for key, declared in keys_of(config).items():
        _check_value(key, value_of(config, key), declared)
    _check_names(config)
    _check_cohort(config)
    _check_method(config)
    for conflict in conflicts(config.engine):
        raise refuse(*conflict)
    _check_communication(config)


def refuse(key: str, value: object, allowed: str) -> ConfigError:
    """The error for a value of a key; all such errors have this form."""
    return ConfigError(key, f"{key}={value}: {allowed}")


def refuse_setting(error: SettingError) -> ConfigError:
    """A method's error about one of its settings, with the configuration's key."""
    key = error.key if "." in error.key else PARAMS + error.key
    return refuse(key, error.value, error.why)


def _check_value(key: str, value: Any, declared: Setting) -> None:
    problem = declared.problem(value)
    if problem is not None:
        close = near_match(value, declared.words) if isinstance(value, str) else ""
        raise refuse(key, value, problem + close)


def _check_names(config: Config) -> None:
    for key in ("model.name", "dataset.name", "dataset.data_dir", "experiment.output_dir"):
        if not value_of(config, key).strip():
            raise refuse(key, "", "must not be empty")
    norm = config.model.norm
    if not re.fullmatch(r"group([1-9]\d*)?|batch", norm):
        raise refuse("model.norm", norm, "must be group, group2 (or another number of groups) or batch")
    name = config.wandb.exp_name
    if not _NAME.fullmatch(name) or name.startswith("."):
        rule = "is a folder name: letters, digits, spaces and _ - + = @ . , (no slash, no dot first)"
        raise refuse("wandb.exp_name", name, rule)


def _check_cohort(config: Config) -> None:
    training = config.training
    total, asked = training.client_num_in_total, training.client_num_per_round
    if asked > total:
        raise refuse(
            "training.client_num_per_round", asked, f"must be at most client_num_in_total={total}, or -1"
        )
    if cohort_size(config) < 1:
        allowed = f"gives no client out of client_num_in_total={total}; must be at least {1 / total:g}"
        raise refuse("training.frac", training.frac, allowed)


def _check_method(config: Config) -> None:
    algorithm = config.algorithm
    try:
        algorithm.method.check(algorithm.params, config.model.dense_ratio, config.training.comm_round)
    except SettingError as error:
        raise refuse_setting(error) from None
    except Exception as error:  # a method from outside the package may fail in any way
        reason = f"its check of the settings failed ({type(error).__name__}: {error})"
        raise refuse("algorithm.name", algorithm.name, reason) from error


def _check_communication(config: Config) -> None:
    asked, codecs = config.communication, codecs_of(config)
    if asked.error_feedback and codecs.uplink not in LOSSY:
        allowed = f"communication.uplink={codecs.uplink} has no coding error; needs one of {', '.join(sorted(LOSSY))}"
        raise refuse("communication.error_feedback", "true", allowed)
    if asked.downlink_versions and codecs.downlink not in TRACKED:
        allowed = (
            f"not with communication.downlink={codecs.downlink}; needs {' or '.join(sorted(TRACKED))}, or 0"
        )
        raise refuse("communication.downlink_versions", asked.downlink_versions, allowed)
