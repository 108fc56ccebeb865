"""Checks for resuming a run: it may be extended by more rounds; any other change of its configuration is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ssfl import run_folder
from ssfl.assemble.build import RunSetup
from ssfl.config import Config, ConfigError, deciding_values, validate
from ssfl.core.payloads import SERVER
from ssfl.engine.state.checkpoint import Facts
from ssfl.engine.state.progress import Progress

ROUNDS = "training.comm_round"
CONFIG = "config"
"""Key in a checkpoint's `extra` of the configuration values that determine the run's results."""
EDITABLE = ("engine.state_memory_mb", "engine.rank_timeout_seconds")
"""Keys that may differ at a resume, in addition to those that `deciding_values` omits."""


def kept_values(config: Config) -> dict[str, Any]:
    """The configuration values that a checkpoint stores: key -> plain value."""
    values = {key: value for key, value in deciding_values(config).items() if not _editable(key)}
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def rounds_asked(words: Sequence[str]) -> int | None:
    """The number of rounds in the arguments after `ssfl resume FOLDER`, or None. Raises ConfigError for other keys."""
    asked = None
    for word in words:
        key, equals, value = word.partition("=")
        if key != ROUNDS or not equals:
            raise ConfigError(
                key,
                f"{word}: a resumed run keeps its configuration; only {ROUNDS}=N may follow, to train longer",
            )
        if not value.isdecimal() or int(value) < 1:
            raise ConfigError(key, f"{word}: must be a whole number from 1")
        asked = int(value)
    return asked


def with_rounds(config: Config, rounds: int | None) -> Config:
    """The configuration with this number of rounds. Raises ConfigError if the method does not allow it."""
    if rounds is None or rounds == config.training.comm_round:
        return config
    config = replace(config, training=replace(config.training, comm_round=rounds))
    validate(config)
    return config


def check_rounds(asked: int | None, facts: Facts | None) -> None:
    """Raises ConfigError if fewer rounds are requested than the run had before."""
    if asked is not None and facts is not None and asked < facts.rounds:
        raise ConfigError(
            ROUNDS,
            f"{ROUNDS}={asked}: this run began with {facts.rounds} rounds; a run can be extended but not shortened",
        )


def check_unchanged(
    config: Config, facts: Facts | None, folder: Path, file: str, asked: int | None = None
) -> None:
    """Raises ConfigError if the configuration differs from the one that the checkpoints were made with.

    file: its file name in `folder`. asked: rounds from the command line, which override the file's. Without a
    checkpoint nothing is compared; checkpoints of earlier versions contain only the number of rounds.
    """
    if facts is None:
        return
    kept = facts.extra.get(CONFIG)
    before: Mapping[str, Any] = kept if isinstance(kept, Mapping) else {}
    now = kept_values(config)
    changed = [key for key in before if key in now and now[key] != before[key] and key != ROUNDS]
    longer = asked is None and config.training.comm_round != facts.rounds
    if not changed and not longer:
        return
    differences = [f"{key}={_word(now[key])} (was {_word(before[key])})" for key in changed]
    if longer:
        differences.append(f"{ROUNDS}={config.training.comm_round} (was {facts.rounds})")
    remedy = "restore the old values, or start a new run with the new ones"
    if longer and not changed and file == run_folder.CONFIG:  # a deployed run is not extended
        remedy = f"to train longer: ssfl resume {folder} {ROUNDS}={config.training.comm_round}"
        if config.training.comm_round < facts.rounds:
            remedy = f"restore the old value: ssfl resume {folder} {ROUNDS}={facts.rounds}"
    raise ConfigError(
        changed[0] if changed else ROUNDS,
        f"{folder / file}: changed since this run began: {', '.join(differences)}; {remedy}",
    )


def usable_by(setup: RunSetup) -> Callable[[Progress], None]:
    """A check that this run can continue from a checkpoint; it raises for one of another run or a forged one."""

    def check(progress: Progress) -> None:
        algorithm, context, wanted = setup.algorithm, setup.context, setup.theta.shape
        theta = algorithm.weights_to_evaluate(progress.state, context)
        if theta is not None and theta.shape != wanted:
            raise ValueError(f"its model has {theta.numel()} coordinates, the network {setup.theta.numel()}")
        mask = algorithm.global_mask(progress.state, context)
        if mask is not None and mask.shape != wanted:
            raise ValueError(f"its mask has {mask.numel()} bits, the network {setup.theta.numel()}")
        algorithm.configure_round(progress.state, progress.clock, context)
        for board in (progress.scoreboard, progress.validation):
            if board is not None and len(board.total) < setup.federation.num_clients:
                raise ValueError(f"its scoreboard has {len(board.total)} clients, too few for this run")
        if not progress.client_memories.keys() <= {SERVER, *context.clients}:
            raise ValueError("it contains memories of clients that this run does not have")

    return check


def _editable(key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in EDITABLE)


def _word(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value
