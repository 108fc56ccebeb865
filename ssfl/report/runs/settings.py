"""The settings of a table: the requested cells (sweep.json) with their runs (run folders), grouped by setting.

Both may be packed in one file (`ssfl.report.runs.compact`).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from ssfl.report.runs.compact import Cell, load_compact, packed_files
from ssfl.report.runs.copies import one_a_seed
from ssfl.report.runs.labels import code_of, labels, method, seed
from ssfl.report.runs.run import Run, RunError, load_run
from ssfl.run_folder import METRICS

SWEEP = "sweep.json"
_SEED = "experiment.seed="
_ROUNDS = "training.comm_round="
_OF_A_RUN = ("experiment.output_dir=", "wandb.exp_name=", "tracking.console=")


@final
@dataclass(frozen=True)
class Setting:
    """One line of a table: the repetitions (seeds) of one setting, including missing ones."""

    label: str
    method: str
    runs: tuple[Run, ...]  # one per seed: the finished one, else the latest
    asked: int  # number of requested seeds
    command: str  # makes all runs
    copies: tuple[Path, ...] = ()  # other run folders of these seeds, which are not used

    @property
    def finished(self) -> tuple[Run, ...]:
        """The finished runs; only they are averaged."""
        return tuple(run for run in self.runs if run.finished)

    @property
    def codes(self) -> tuple[str, ...]:
        """The code versions of the runs; several are named in the label."""
        return _codes(self.runs)

    @property
    def seeds(self) -> str:
        """`3 of 3`, or with missing runs: `1 of 3 (1 at round 12 of 60, 1 not started)`."""
        open_ones = [
            f"1 at round {run.rounds_done} of {run.rounds_asked}" for run in self.runs if not run.finished
        ]
        absent = self.asked - len(self.runs)
        missing = open_ones + ([f"{absent} not started"] if absent else [])
        return f"{len(self.finished)} of {self.asked}" + (f" ({', '.join(missing)})" if missing else "")


def settings(folders: Sequence[Path]) -> list[Setting]:
    """All settings in `folders`, sweeps first; runs outside sweeps are grouped by their labels.

    Raises:
        RunError: a folder contains neither a sweep nor a run, or a file is damaged.
    """
    planned, loose = list[_Planned](), list[Run]()
    for top in map(Path, folders):
        packed = packed_files(top)
        for path in packed:
            planned += _grouped(load_compact(path))
        sweeps = [path for path in sorted(top.rglob(SWEEP)) if not _hidden(path, top)]
        inside = {path.parent for path in sweeps}
        alone = [
            path.parent
            for path in sorted(top.rglob(METRICS))
            if not _hidden(path, top) and not inside & set(path.parents)
        ]
        if not sweeps and not alone and not packed:
            raise RunError(f"{top}: no sweep and no run here; by default they are in outputs/")
        for path in sweeps:
            planned += _planned(path)
        loose += [load_run(folder) for folder in alone]
    return _labelled(planned, loose)


@final
@dataclass(frozen=True)
class _Planned:
    """A setting of a sweep that has no label yet."""

    words: tuple[str, ...]  # without the seed
    fallback: str
    runs: tuple[Run, ...]
    seeds: tuple[str, ...]
    copies: tuple[Path, ...]


def _planned(path: Path) -> Iterator[_Planned]:
    try:
        yield from _grouped(sweep_cells(path.parent))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{path}: cannot be read as a sweep ({error}); it may be incomplete") from None


def sweep_cells(folder: Path) -> list[Cell]:
    """The cells of a sweep's folder, each with its run. Raises OSError or ValueError if sweep.json is unreadable."""
    cells: list[dict[str, Any]] = json.loads((folder / SWEEP).read_text(encoding="utf-8"))["cells"]
    return [_cell(c, folder / "runs" / c["name"]) for c in cells]


def _cell(stored: dict[str, Any], folder: Path) -> Cell:
    run, runs = best_run(folder), _run_folders(folder)
    copies = tuple(path for path in runs if run is not None and path != run.folder)
    return Cell(stored["name"], stored["label"], tuple(stored["overrides"]), run, copies)


def _grouped(cells: Sequence[Cell]) -> Iterator[_Planned]:
    """Groups of cells that differ only by seed."""
    grouped: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        words = tuple(word for word in cell.overrides if not word.startswith(_SEED))
        grouped.setdefault(words, []).append(cell)
    for words, members in grouped.items():
        runs = tuple(cell.run for cell in members if cell.run)
        plain = " ".join(word for word in members[0].label.split() if not word.startswith(_SEED))
        seeds = tuple(
            w.removeprefix(_SEED) for cell in members for w in cell.overrides if w.startswith(_SEED)
        )
        copies = tuple(path for cell in members for path in cell.copies)
        yield _Planned(words, plain or " ".join(words), runs, seeds, copies)


def best_run(folder: Path) -> Run | None:
    """The finished run of a cell, else the one with most rounds; None if no run was started."""
    runs = [load_run(path) for path in _run_folders(folder)]
    return max(runs, key=lambda run: (run.finished is not None, run.rounds_done), default=None)


def _run_folders(folder: Path) -> list[Path]:
    return [path.parent for path in sorted(folder.glob(f"[!.]*/{METRICS}"))]


def _labelled(planned: Sequence[_Planned], loose: Sequence[Run]) -> list[Setting]:
    begun = [group.runs for group in planned if group.runs]
    codes = [*map(_codes, begun), *(_codes([run]) for run in loose)]
    # All at once, so that labels contain all differences.
    group_labels = iter(labels([*(runs[0] for runs in begun), *loose], codes=codes))
    alike: dict[str | int, list[_Planned]] = {}
    for number_of_group, group in enumerate(planned):  # those without a run have no label yet
        alike.setdefault(next(group_labels) if group.runs else number_of_group, []).append(group)
    for run, label in zip(loose, group_labels):
        number = seed(run)
        seeds = () if number is None else (str(number),)
        alike.setdefault(label, []).append(_Planned(_words(run), label, (run,), seeds, ()))
    return [
        _merged(label, groups) if isinstance(label, str) else _not_begun(groups[0])
        for label, groups in alike.items()
    ]


def _not_begun(group: _Planned) -> Setting:
    command = _command(group.words, group.seeds)
    return Setting(group.fallback, "", (), max(len(group.seeds), 1), command, group.copies)


def _merged(label: str, groups: Sequence[_Planned]) -> Setting:
    """One setting of groups with the same label, such as a sweep and a later one with more seeds."""
    runs, repeated = one_a_seed([run for group in groups for run in group.runs])
    listed = [number for group in groups for number in group.seeds]
    if len(groups) > 1:  # one of them may have the default seed, which its words do not name
        listed += [str(number) for run in runs if (number := seed(run)) is not None]
    seeds = tuple(dict.fromkeys(listed))
    unknown = sum(seed(run) is None for run in runs)
    lengths = sorted({run.rounds_done for run in runs if run.finished})
    if len(lengths) > 1:
        label += f", seeds of {' and '.join(map(str, lengths))} rounds"
    return Setting(
        label,
        method(runs[0]),
        tuple(runs),
        max(len(seeds) + unknown, len(runs)),
        _command(groups[0].words, seeds),
        (*(path for group in groups for path in group.copies), *(run.folder for run in repeated)),
    )


def _codes(runs: Sequence[Run]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(code_of, runs)))


def _words(run: Run) -> tuple[str, ...]:
    """The arguments of the command that made a run, from its environment.json, without the seed."""
    command = run.environment.get("command")
    words = [str(word) for word in command] if isinstance(command, list) else []
    left_out = (_SEED, *_OF_A_RUN)
    kept = tuple(word for word in words[1:] if "=" in word and not word.startswith(left_out))
    if not any(row["event"] == "extended" for row in run.rows):
        return kept
    return (*(word for word in kept if not word.startswith(_ROUNDS)), f"{_ROUNDS}{run.rounds_asked}")


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
        return f'"{key}=$SSFL_DATA_DIR"'  # differs between machines; the shell inserts it
    return shlex.quote(word)


def _hidden(path: Path, top: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(top).parts)
