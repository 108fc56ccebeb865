"""A run folder as data: its configuration and the rows of metrics.jsonl (docs/metrics.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import yaml

METRICS = "metrics.jsonl"
CONFIG = "config.yaml"
Row = Mapping[str, Any]


class RunError(ValueError):
    """A folder that is no run, or whose files cannot be read; one line."""


@final
@dataclass(frozen=True)
class Run:
    """What one run told, finished or not."""

    folder: Path
    config: Mapping[str, Any]
    rows: tuple[Row, ...]

    @cached_property
    def started(self) -> Row:
        """The `run_started` row; empty where the run was killed before it."""
        return next((row for row in self.rows if row["event"] == "run_started"), {})

    @cached_property
    def finished(self) -> Row | None:
        """The `run_finished` row; None where the run did not end."""
        return next((row for row in self.rows if row["event"] == "run_finished"), None)

    @cached_property
    def exchanges(self) -> tuple[Row, ...]:
        """All `phase` and `round` rows, in order."""
        return tuple(row for row in self.rows if row["event"] in ("phase", "round"))

    @cached_property
    def evaluations(self) -> tuple[Row, ...]:
        """The exchanges after which the models were tested."""
        return tuple(row for row in self.exchanges if is_evaluated(row))

    @property
    def rounds_done(self) -> int:
        """Finished training rounds."""
        return max((row["round"] for row in self.exchanges), default=0)

    @property
    def rounds_asked(self) -> int:
        """Training rounds that the run was told to do; 0 where nothing says so."""
        return int(self.started.get("rounds") or self.setting("training.comm_round", 0))

    def last_evaluation(self) -> Row:
        """The row of the latest evaluation; empty where there was none."""
        return self.evaluations[-1] if self.evaluations else {}

    def total(self, field: str) -> float:
        """Sum of an additive field (`downlink_bytes`, `train_flops`, ...) over all exchanges."""
        return sum(row.get(field) or 0 for row in self.exchanges)

    @property
    def total_bytes(self) -> float:
        """Everything that travelled: down, up and between clients."""
        return self.total("downlink_bytes") + self.total("uplink_bytes") + self.total("peer_bytes")

    @property
    def fedavg_bytes(self) -> float | None:
        """Down and up of dense FedAvg with this cohort over the rounds done, by arithmetic; None if unknown."""
        dense, cohort = self.started.get("dense_bytes"), self.started.get("cohort")
        return None if dense is None or cohort is None else 2.0 * dense * cohort * self.rounds_done

    @property
    def bytes_ratio(self) -> float | None:
        """FedAvg's bytes over this run's; None before there are any."""
        dense, spent = self.fedavg_bytes, self.total_bytes
        return dense / spent if dense and spent else None

    @property
    def wall_seconds(self) -> float:
        """Of the whole run where it finished, else of its exchanges."""
        return float(self.finished["wall_seconds"]) if self.finished else self.total("wall_seconds")

    @property
    def layer_density(self) -> Mapping[str, float]:
        """Share kept of each layer (name -> 0-1) by the latest mask; empty where no mask was made."""
        made = [row["layer_density"] for row in self.exchanges if row.get("layer_density")]
        return made[-1] if made else {}

    @property
    def status(self) -> str:
        """`finished`, or how far it came; an unfinished run is never passed off as a result."""
        if self.finished:
            return "finished"
        if not self.rows:
            return "not started"
        last = self.rows[-1]["event"]
        word = "interrupted" if last == "run_interrupted" else "unfinished"
        return f"{word}, round {self.rounds_done} of {self.rounds_asked}"

    def setting(self, key: str, default: Any = None) -> Any:
        """A value of config.yaml by its dotted key."""
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return value


def is_evaluated(row: Row) -> bool:
    """Whether the models were tested in this exchange."""
    return row.get("client_accuracy_mean") is not None or row.get("global_accuracy") is not None


def load_run(folder: Path) -> Run:
    """Read a run folder, also while it is being written.

    Raises:
        RunError: there is no metrics.jsonl, or a file is damaged beyond a half-written last line.
    """
    folder = Path(folder)
    try:
        content = (folder / METRICS).read_bytes()
    except OSError:
        raise RunError(
            f"{folder}: no run here (it has no readable {METRICS}); give a folder that a run printed"
        ) from None
    return Run(folder, _config(folder), tuple(_rows(folder / METRICS, content)))


def find_run_folders(folders: Sequence[Path]) -> list[Path]:
    """Every run folder among and below `folders`, each once, sorted within each; hidden folders are left out.

    Raises:
        RunError: one of `folders` holds no run at all.
    """
    found: dict[Path, Path] = {}
    for top in map(Path, folders):
        inside = [path.parent for path in top.rglob(METRICS) if not _is_hidden(path.relative_to(top))]
        if not inside:
            raise RunError(f"{top}: no run here or below (no folder with {METRICS}); runs lie under outputs/")
        for folder in sorted(inside):
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """All runs among and below `folders`."""
    return [load_run(folder) for folder in find_run_folders(folders)]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    if not path.is_file():  # the rows alone are enough for everything but labels
        return {}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    return config if isinstance(config, Mapping) else {}


def _rows(path: Path, content: bytes) -> Iterable[Row]:
    lines = content.split(b"\n")
    if lines[-1]:
        lines.pop()  # half written: a run at work, or one that was killed
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise RunError(f"{path}, line {number}: no JSON; delete this line to read the rest") from None
        if not isinstance(row, dict) or "event" not in row:
            raise RunError(f"{path}, line {number}: no event (docs/metrics.md); delete this line")
        yield row
