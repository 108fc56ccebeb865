"""A run folder as data: its configuration and the rows of metrics.jsonl (docs/metrics.md)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, final

from ssfl.errors import UserError
from ssfl.event_fields import event_problem
from ssfl.run_folder import CONFIG, METRICS
from ssfl.yaml_text import read_yaml

ENVIRONMENT = "environment.json"
Row = Mapping[str, Any]


class RunError(UserError):
    """A folder that is not a run folder, or whose files cannot be read; one line."""


@final
@dataclass(frozen=True)
class Run:
    """The events of one run, finished or not."""

    folder: Path
    config: Mapping[str, Any]
    rows: tuple[Row, ...]
    environment: Mapping[str, Any] = field(default_factory=dict)
    """environment.json; empty if there is none."""

    @cached_property
    def started(self) -> Row:
        """The `run_started` row; empty if the run was killed before it."""
        return next((row for row in self.rows if row["event"] == "run_started"), {})

    @cached_property
    def finished(self) -> Row | None:
        """The `run_finished` row; None if the run did not finish."""
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
        """Training rounds of the run's configuration or of its last extension; 0 if it is not known."""
        extended = [row.get("rounds") for row in self.rows if row["event"] == "extended"]
        rounds = extended[-1] if extended else self.started.get("rounds")
        return int(rounds or self.setting("training.comm_round", 0))

    def last_evaluation(self) -> Row:
        """The row of the last evaluation; empty if there was none."""
        return self.evaluations[-1] if self.evaluations else {}

    def total(self, field: str) -> float:
        """Sum of an additive field (`downlink_bytes`, `train_flops`, ...) over all exchanges."""
        return sum(row.get(field) or 0 for row in self.exchanges)

    @property
    def total_bytes(self) -> float:
        """All bytes sent: down, up and between clients."""
        return self.total("downlink_bytes") + self.total("uplink_bytes") + self.total("peer_bytes")

    @property
    def one_off_bytes(self) -> float:
        """Bytes of the phases outside training rounds: scores, masks, fine-tuning."""
        phases = [row for row in self.exchanges if row["event"] == "phase"]
        return float(
            sum(row["downlink_bytes"] + row["uplink_bytes"] + (row.get("peer_bytes") or 0) for row in phases)
        )

    @property
    def fedavg_bytes(self) -> float | None:
        """Down and up of dense FedAvg with this cohort over the completed rounds, computed; None if unknown."""
        dense, cohort = self.started.get("dense_bytes"), self.started.get("cohort")
        return None if dense is None or cohort is None else 2.0 * dense * cohort * self.rounds_done

    @property
    def bytes_ratio(self) -> float | None:
        """FedAvg's bytes divided by this run's; None before the first exchange."""
        dense, spent = self.fedavg_bytes, self.total_bytes
        return dense / spent if dense and spent else None

    @property
    def wall_seconds(self) -> float:
        """Seconds of the whole run if it finished, else of its exchanges."""
        return float(self.finished["wall_seconds"]) if self.finished else self.total("wall_seconds")

    @property
    def layer_density(self) -> Mapping[str, float]:
        """Share kept of each layer (name -> 0-1) by the latest mask; empty if no mask was made."""
        made = [row["layer_density"] for row in self.exchanges if row.get("layer_density")]
        return made[-1] if made else {}

    @property
    def status(self) -> str:
        """`finished`, or how far an unfinished run came."""
        if self.finished:
            return "finished"
        if not self.rows:
            return "not started"
        last = self.rows[-1]["event"]
        word = "interrupted" if last == "run_interrupted" else "unfinished"
        return f"{word}, round {self.rounds_done} of {self.rounds_asked}"

    @property
    def code_records(self) -> list[Mapping[str, Any]]:
        """What the run recorded of the code that started it, and of the code that resumed it."""
        resumed = (row.get("code") for row in self.rows if row["event"] == "resumed")
        return [code for code in (self.environment.get("code"), *resumed) if isinstance(code, Mapping)]

    @property
    def code(self) -> str:
        """The code version of the run: digest of its Python files, and that of its kernels in C if it was recorded (all
        versions if other code resumed it); else the package's version, else ""."""
        digests = [_digests(code) for code in self.code_records if "sources" in code]
        return "+".join(dict.fromkeys(digests)) or str(self.started.get("version") or "")

    def setting(self, key: str, default: Any = None) -> Any:
        """A value of config.yaml by its dotted key."""
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return value


def _digests(code: Mapping[str, Any]) -> str:
    """`SOURCES-KERNELS`; only SOURCES without kernels, and in older records, which have no `kernel_sources`."""
    kernels = (code.get("kernel_sources") or code.get("kernels")) if "kernel_sources" in code else None
    return f"{code['sources']}-{kernels}" if kernels else str(code["sources"])


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A configuration with dotted keys."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found


def nested(config: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`."""
    whole: dict[str, Any] = {}
    for key, value in config.items():
        *above, name = key.split(".")
        place = whole
        for part in above:
            place = place.setdefault(part, {})
        place[name] = value
    return whole


def is_evaluated(row: Row) -> bool:
    """Whether the models were tested in this exchange."""
    return row.get("client_accuracy_mean") is not None or row.get("global_accuracy") is not None


def load_run(folder: Path) -> Run:
    """Read a run folder; the run may still be in progress.

    Raises:
        RunError: there is no metrics.jsonl, or a file is damaged (an incomplete last line is allowed).
    """
    folder = Path(folder)
    try:
        content = (folder / METRICS).read_bytes()
    except OSError:
        raise RunError(
            f"{folder}: not a run folder (it has no readable {METRICS}); give a folder that a run printed"
        ) from None
    return Run(folder, _config(folder), tuple(_rows(folder / METRICS, content)), _environment(folder))


def find_run_folders(folders: Sequence[Path]) -> list[Path]:
    """All run folders in `folders`, each once, sorted within each; hidden folders are skipped.

    Raises:
        RunError: one of `folders` contains no run.
    """
    found: dict[Path, Path] = {}
    for top in map(Path, folders):
        if top.is_dir() and not os.access(top, os.R_OK | os.X_OK):  # it would be taken for an empty one
            raise RunError(f"{top}: Permission denied; give this user the right to read it")
        inside = [path.parent for path in top.rglob(METRICS) if not _is_hidden(path.relative_to(top))]
        if not inside:
            raise RunError(
                f"{top}: no run folder here (no folder with {METRICS}); by default runs are in outputs/"
            )
        for folder in sorted(inside):
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """All runs in `folders`."""
    return [load_run(folder) for folder in find_run_folders(folders)]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    if not path.is_file():  # only labels need the configuration
        return {}
    try:
        config = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # a YamlError is a ValueError
        raise RunError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    return config if isinstance(config, Mapping) else {}


def _environment(folder: Path) -> Mapping[str, Any]:
    """The content of environment.json; empty if it is damaged, because no number depends on it."""
    try:
        read = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, Mapping) else {}


def _rows(path: Path, content: bytes) -> Iterable[Row]:
    lines = content.split(b"\n")
    if lines[-1]:
        lines.pop()  # incomplete: the run is in progress or was killed
    for number, line in enumerate(lines, 1):
        if not line.strip():  # blank: a resume found a damaged line here
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise RunError(f"{path}, line {number}: not JSON; delete this line to read the rest") from None
        if problem := event_problem(row):
            raise RunError(
                f"{path}, line {number}: {problem} (docs/metrics.md); delete this line to read the rest"
            )
        yield row
