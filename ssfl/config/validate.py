"""Is every value possible? Ranges and choices of single keys, then what keys ask of one another."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple, final

from ssfl.config.errors import ConfigError, near_match
from ssfl.config.schema import Config


@final
class Range(NamedTuple):
    """Allowed numbers of one key; `above` excludes the lower end."""

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False
    also: tuple[Any, ...] = ()  # single values allowed beside the range (-1, "auto")

    def holds(self, value: float) -> bool:
        """Whether a finite number lies in the range."""
        low_ok = value > self.low if self.above else value >= self.low
        high_ok = value < self.high if self.below else value <= self.high
        return math.isfinite(value) and low_ok and high_ok

    def __str__(self) -> str:
        text = f"{'above' if self.above else 'at least'} {self.low:g}"
        if math.isfinite(self.high):
            text += f" and {'below' if self.below else 'at most'} {self.high:g}"
        return text + "".join(f", or {value}" for value in self.also)


CHOICES: dict[str, tuple[str, ...]] = {
    "algorithm.params.mode": ("static", "random_global", "random_layerwise", "random_clientwise"),
    "algorithm.params.method": ("ssfl", "ssfl_aux", "grasp", "synflow", "magnitude"),
    "algorithm.params.weighting": ("examples", "uniform"),
    "algorithm.params.ties": ("exact", "keep"),
    "algorithm.params.topology": ("random", "ring", "full"),
    "algorithm.params.regrow": ("gradient", "random", "none"),
    "dataset.partition_method": ("dir", "patho", "dir_unbalanced", "iid", "natural"),
    "optimizer.client_optimizer": ("sgd",),
    "optimizer.scheduler": ("default", "cosine_annealing", "geometric"),
    "engine.executor": ("auto", "sequential", "threads", "batched", "processes"),
    "engine.precision": ("fp32", "tf32", "bf16"),
    "engine.device": ("auto", "cpu", "cuda"),
    "engine.memory_format": ("auto", "contiguous", "channels_last", "mixed"),
    "engine.convolutions": ("auto", "direct", "winograd"),
    "engine.kernels": ("auto", "native", "torch"),
    "engine.rank_exchange": ("mean", "replies"),
    "tracking.console": ("auto", "rich", "plain", "quiet", "json"),
    "wandb.mode": ("online", "offline", "disabled"),
}

_SHARE = Range(0, 1, above=True)
_COUNT = Range(1)
_WHOLE = Range(0)
_AUTO = Range(1, also=("auto",))

RANGES: dict[str, Range] = {
    "algorithm.params.initial_mask_freq": _WHOLE,
    "algorithm.params.warmup_rounds": _WHOLE,
    "algorithm.params.saliency_fraction": _SHARE,
    "algorithm.params.min_layer_density": Range(0, 1),
    "algorithm.params.neighbours": Range(1, also=(-1,)),
    "algorithm.params.beta": Range(1),
    "model.anneal_factor": Range(0, 1),
    "model.erk_power_scale": _WHOLE,
    "optimizer.final_lr": Range(0, above=True),
    "model.dense_ratio": _SHARE,
    "model.itersnip_iteration": _COUNT,
    "dataset.partition_alpha": Range(0, above=True),
    "dataset.min_examples": _COUNT,
    "optimizer.lr": Range(0, above=True),
    "optimizer.lr_decay": _SHARE,
    "optimizer.momentum": Range(0, 1, below=True),
    "optimizer.wd": _WHOLE,
    "optimizer.scheduler_cycle_len": _COUNT,
    "optimizer.clip_norm": _WHOLE,
    "training.batch_size": _COUNT,
    "training.epochs": _COUNT,
    "training.comm_round": _COUNT,
    "training.frac": _SHARE,
    "training.client_num_in_total": _COUNT,
    "training.client_num_per_round": Range(1, also=(-1,)),
    "training.frequency_of_the_test": _COUNT,
    "training.max_workers": _COUNT,
    "training.fine_tune_epochs": Range(0, also=(-1,)),
    "experiment.seed": Range(0, 2**63 - 1),
    "experiment.gpu": _WHOLE,
    "engine.workers": _AUTO,
    "engine.block": _AUTO,
    "engine.threads": _AUTO,
    "engine.rank_timeout_seconds": Range(0, above=True),
    "engine.state_memory_mb": Range(0, also=("auto",)),
    "checkpoint.every_rounds": _WHOLE,
    "checkpoint.every_seconds": _WHOLE,
    "checkpoint.stop_after_seconds": _WHOLE,
}

_NAME = re.compile(r"[\w.+=@-][\w.+=@, -]*")


def value_of(config: Config, key: str) -> Any:
    """The value at a dotted key."""
    node: Any = config
    for part in key.split("."):
        node = getattr(node, part)
    return node


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
    """Local epochs of the fine-tuning after the last round; -1 stands for `training.epochs`."""
    asked = config.training.fine_tune_epochs
    return config.training.epochs if asked == -1 else asked


def validate(config: Config) -> None:
    """Refuse what no run could use.

    What depends on the data (classes, examples, sites) is refused later, by the data room.

    Raises:
        ConfigError: one line with the key, its value and what is allowed.
    """
    for key, names in CHOICES.items():
        _check_choice(key, value_of(config, key), names)
    for key, allowed in RANGES.items():
        _check_range(key, value_of(config, key), allowed)
    _check_names(config)
    _check_cohort(config)
    _check_rounds(config)
    _check_block(config)
    _check_compaction(config)
    _check_compile(config)
    _check_format(config)


def refuse(key: str, value: object, allowed: str) -> ConfigError:
    """The one wording of all complaints about a value."""
    return ConfigError(key, f"{key}={value}: {allowed}")


def _check_choice(key: str, value: str, names: tuple[str, ...]) -> None:
    if value not in names:
        raise refuse(key, value, f"must be one of {', '.join(names)}{near_match(value, names)}")


def _check_range(key: str, value: Any, allowed: Range) -> None:
    if value in allowed.also:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not allowed.holds(value):
        finite = "a finite number, " if number and not math.isfinite(value) else ""
        raise refuse(key, value, f"must be {finite}{allowed}")


def _check_names(config: Config) -> None:
    for key in ("model.name", "dataset.name", "dataset.data_dir", "experiment.output_dir"):
        if not value_of(config, key).strip():
            raise refuse(key, "", "must not be empty")
    norm = config.model.norm
    if not re.fullmatch(r"group([1-9]\d*)?|batch", norm):
        raise refuse("model.norm", norm, "must be group, group2 (or another number of groups) or batch")
    name = config.wandb.exp_name
    if not _NAME.fullmatch(name) or name.startswith("."):
        rule = "names a folder: letters, digits, and _ - + = @ . (no slash, no dot first)"
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


def _check_rounds(config: Config) -> None:
    if config.algorithm.name != "ssfl":
        return
    params, rounds = config.algorithm.params, config.training.comm_round
    for field in ("warmup_rounds", "initial_mask_freq"):
        value = getattr(params, field)
        if value >= rounds:
            allowed = f"must be below training.comm_round={rounds}, or no round is left for the mask"
            raise refuse(f"algorithm.params.{field}", value, allowed)
    density = config.model.dense_ratio
    if params.min_layer_density > density:
        allowed = f"must be at most model.dense_ratio={density:g}, the density of the whole model"
        raise refuse("algorithm.params.min_layer_density", params.min_layer_density, allowed)


def _check_block(config: Config) -> None:
    engine = config.engine
    if engine.executor in ("sequential", "threads") and engine.block not in ("auto", 1):
        allowed = f"engine.executor={engine.executor} takes one client at a time; use batched or processes, or block=1"
        raise refuse("engine.block", engine.block, allowed)


def _check_compile(config: Config) -> None:
    """An option that changed nothing would be a lie in the run folder."""
    if not config.engine.compile:
        return
    if config.engine.executor in ("threads", "batched"):
        allowed = f"not with engine.executor={config.engine.executor}; use sequential or processes with it"
        raise refuse("engine.compile", "true", allowed)
    if config.engine.compaction:
        raise refuse(
            "engine.compile", "true", "not with engine.compaction=true, which changes layers as it goes"
        )
    if config.engine.kernels == "native":
        raise refuse("engine.kernels", "native", "not with engine.compile=true; leave it auto, or torch")


def _check_format(config: Config) -> None:
    engine = config.engine
    if engine.memory_format == "mixed" and (engine.kernels == "torch" or engine.compile):
        allowed = "needs engine.kernels=native, which changes the format on its way; or choose channels_last"
        raise refuse("engine.memory_format", "mixed", allowed)
    if engine.convolutions == "winograd":
        _check_winograd(config)


def _check_winograd(config: Config) -> None:
    engine = config.engine
    in_blocks = engine.executor == "batched" or engine.block not in ("auto", 1)
    for hinders, because in (
        (engine.kernels == "torch" or engine.compile, "needs engine.kernels=native"),
        (engine.memory_format not in ("auto", "channels_last"), "needs engine.memory_format=channels_last"),
        (in_blocks, "not in blocks of clients, which compute theirs together"),
        (engine.precision != "fp32", "computes in float32: engine.precision=fp32"),
    ):
        if hinders:
            raise refuse("engine.convolutions", "winograd", f"{because}; or leave it auto, or direct")


def _check_compaction(config: Config) -> None:
    if config.engine.compaction and config.engine.executor == "batched":
        allowed = "leaves channels out client by client; use engine.executor=sequential, threads or processes with it"
        raise refuse("engine.compaction", "true", allowed)
