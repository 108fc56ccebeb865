"""The cells of a table: what was asked for (sweep.json), what there is of it (run folders), by setting."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from ssfl.report.labels import labels, method, seed
from ssfl.report.runs import METRICS, Run, RunError, load_run

SWEEP = "sweep.json"
_SEED = "experiment.seed="
_OF_A_RUN = ("experiment.output_dir=", "wandb.exp_name=", "tracking.console=")


@final
@dataclass(frozen=True)
class Setting:
    """One line of a table: the repetitions (seeds) of one setting, those that are missing counted too."""

    label: str
    method: str
    runs: tuple[Run, ...]  # one a seed: the finished one, else the latest
    asked: int  # seeds asked for
    command: str  # makes all of them

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs that ended: only they are averaged."""
        return tuple(run for run in self.runs if run.finished)

    @property
    def seeds(self) -> str:
        """`3 of 3`, or what is missing: `1 of 3 (1 at round 12 of 60, 1 not started)`."""
        open_ones = [
            f"1 at round {run.rounds_done} of {run.rounds_asked}" for run in self.runs if not run.finished
        ]
        absent = self.asked - len(self.runs)
        missing = open_ones + ([f"{absent} not started"] if absent else [])
        return f"{len(self.finished)} of {self.asked}" + (f" ({', '.join(missing)})" if missing else "")


def settings(folders: Sequence[Path]) -> list[Setting]:
    """All settings among and below `folders`, sweeps first; runs outside sweeps are grouped by their labels.

    Raises:
        RunError: a folder holds neither sweep nor run, or a file is damaged.
    """
    planned, loose = list[_Planned](), list[Run]()
    for top in map(Path, folders):
        sweeps = [path for path in sorted(top.rglob(SWEEP)) if not _hidden(path, top)]
        inside = {path.parent for path in sweeps}
        alone = [
            path.parent
            for path in sorted(top.rglob(METRICS))
            if not _hidden(path, top) and not inside & set(path.parents)
        ]
        if not sweeps and not alone:
            raise RunError(f"{top}: no sweep and no run here or below; they lie under outputs/")
        for path in sweeps:
            planned += _planned(path)
        loose += [load_run(folder) for folder in alone]
    return _labelled(planned, loose)


@final
@dataclass(frozen=True)
class _Planned:
    """A setting of a sweep before it has its label."""

    words: tuple[str, ...]  # without the seed
    fallback: str
    runs: tuple[Run, ...]
    seeds: tuple[str, ...]


def _planned(path: Path) -> Iterator[_Planned]:
    try:
        cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
        grouped: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for cell in cells:
            words = tuple(word for word in cell["overrides"] if not word.startswith(_SEED))
            grouped.setdefault(words, []).append(cell)
        for words, members in grouped.items():
            runs = [best_run(path.parent / "runs" / cell["name"]) for cell in members]
            plain = " ".join(word for word in members[0]["label"].split() if not word.startswith(_SEED))
            seeds = tuple(
                word.removeprefix(_SEED)
                for cell in members
                for word in cell["overrides"]
                if word.startswith(_SEED)
            )
            yield _Planned(words, plain or " ".join(words), tuple(run for run in runs if run), seeds)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{path}: cannot be read as a sweep ({error}); is it whole?") from None


def best_run(folder: Path) -> Run | None:
    """The finished run of a cell, else the one that came farthest; None where nothing was started."""
    runs = [load_run(path.parent) for path in sorted(folder.glob(f"[!.]*/{METRICS}"))]
    return max(runs, key=lambda run: (run.finished is not None, run.rounds_done), default=None)


def _labelled(planned: Sequence[_Planned], loose: Sequence[Run]) -> list[Setting]:
    firsts = [group.runs[0] for group in planned if group.runs]
    told = iter(labels([*firsts, *loose]))  # together, so that a label names all in which they differ
    found = []
    for group in planned:
        label = next(told) if group.runs else group.fallback
        asked = max(len(group.seeds), 1)
        name = method(group.runs[0]) if group.runs else ""
        found.append(Setting(label, name, group.runs, asked, _command(group.words, group.seeds)))
    grouped: dict[str, list[Run]] = {}
    for run, label in zip(loose, told):
        grouped.setdefault(label, []).append(run)
    for label, members in grouped.items():
        seeds = tuple(str(seed(run)) for run in members)
        command = _command(_words(members[0]), tuple(dict.fromkeys(seeds)))
        found.append(Setting(label, method(members[0]), tuple(members), len(members), command))
    return found


def _words(run: Run) -> tuple[str, ...]:
    """The words of the command that made a run, as its environment.json remembers them; without its seed."""
    try:
        environment = json.loads((run.folder / "environment.json").read_text(encoding="utf-8"))
        said = [str(word) for word in environment["command"]]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    left_out = (_SEED, *_OF_A_RUN)
    return tuple(word for word in said[1:] if "=" in word and not word.startswith(left_out))


def _command(words: Sequence[str], seeds: Sequence[str]) -> str:
    """The shell command that makes the runs of one setting."""
    if not words:
        return ""
    verb = "sweep" if len(seeds) > 1 else "run"
    all_words = [*words, *([_SEED + ",".join(seeds)] if seeds else [])]
    return " ".join(["ssfl", verb, *map(_quoted, all_words)])


def _quoted(word: str) -> str:
    key, _, value = word.partition("=")
    if key == "dataset.data_dir" and (value.startswith("$") or Path(value.strip("'")).is_absolute()):
        return f'"{key}=$SSFL_DATA_DIR"'  # differs from machine to machine; the shell fills it in
    return shlex.quote(word)


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, object]:
    """A configuration with dotted keys."""
    found: dict[str, object] = {}
    for name, value in config.items():
        found |= flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found


def _hidden(path: Path, top: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(top).parts)
