"""Collects the results of an experiment's sweeps in one file to commit, without weights and paths of this machine.

`python -m ssfl.report.runs.collect [--with-fedavg] SWEEP... FILE` writes FILE (`runs.json`, see
`ssfl.report.runs.compact`).
`--with-fedavg`: FedAvg-FT is FedAvg until its last phase, so each of its runs also gives a run of FedAvg.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssfl.report.runs.compact import Cell, dumps, load_compact
from ssfl.report.runs.run import Row, Run, RunError, flat, is_evaluated, nested
from ssfl.report.runs.settings import sweep_cells

_FT, _FEDAVG = "algorithm=fedavg_ft", "algorithm=fedavg"
_FINE_TUNING = ("training.fine_tune_epochs", "optimizer.fine_tune_lr")
"""Keys that FedAvg-FT reads and FedAvg does not."""
_PLACES = {"dataset.data_dir": "$SSFL_DATA_DIR", "experiment.output_dir": "outputs"}
"""Keys whose values are paths of a machine, and their replacements."""
_PLACE = re.compile(rf"""(?<!\S)({"|".join(map(re.escape, _PLACES))})=('[^']*'|"[^"]*"|\S*)""")


def collect(sweeps: Sequence[Path], out: Path, with_fedavg: bool = False) -> int:
    """Write the results of sweep folders, and of earlier files, to `out`. Returns the number of runs in it.

    A cell name appears once: the finished run, else the one with most rounds. with_fedavg: also FedAvg's runs from
    those of FedAvg-FT.

    Raises:
        RunError: one of `sweeps` is not a sweep, `out` is another kind of file, or one name has two settings.
    """
    if out.exists():
        load_compact(out)  # no other kind of file is replaced
    found = [_without_places(without_earlier_ends(cell)) for sweep in sweeps for cell in _cells(sweep)]
    if with_fedavg:
        found = [*(c for cell in found if (c := before_fine_tuning(cell)) is not None), *found]
    cells: dict[str, Cell] = {}
    for cell in found:
        known = cells.get(cell.name)
        if known is not None and known.overrides != cell.overrides:
            ours, theirs = (" ".join(each.overrides) for each in (known, cell))
            raise RunError(
                f"{cell.name} stands for two settings: {ours}; {theirs}: collect them in two files"
            )
        if known is None or _progress(cell.run) > _progress(known.run):
            cells[cell.name] = cell
    out.parent.mkdir(parents=True, exist_ok=True)
    text = dumps(list(cells.values()))
    fresh = out.with_name(f".{out.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(out)
    return sum(cell.run is not None for cell in cells.values())


def _cells(sweep: Path) -> list[Cell]:
    if sweep.is_file():
        return load_compact(sweep)
    try:
        return sweep_cells(sweep)
    except RunError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{sweep}: no readable sweep.json there ({error})") from None


def without_earlier_ends(cell: Cell) -> Cell:
    """The same cell without fine-tuning before its last round, which extended runs of earlier versions recorded.

    The clients' accuracies after such a fine-tuning stay: they include clients that were fine-tuned there and not
    trained since.
    """
    run = cell.run
    if run is None:
        return cell
    earlier = [
        row for row in run.exchanges if row.get("phase") == "fine_tune" and row["round"] < run.rounds_done
    ]
    if not earlier:
        return cell
    rows = [dict(row) for row in run.rows if row not in earlier]
    for row in rows:
        if row["event"] == "run_finished":
            _drop_totals(row)
    return replace(cell, run=replace(run, rows=tuple(rows)))


def _drop_totals(row: dict[str, Any]) -> None:
    """Remove totals that include removed rows; tables use the sums of the rows."""
    for name in [name for name in row if name.startswith("total_") or name == "bytes_ratio"]:
        del row[name]


def before_fine_tuning(cell: Cell) -> Cell | None:
    """A FedAvg-FT run without its last phase, which is a FedAvg run; None for cells of other methods."""
    if _FT not in cell.overrides:
        return None
    overrides = tuple(_FEDAVG if word == _FT else word for word in cell.overrides)
    name, label = cell.name.replace("fedavg_ft", "fedavg"), cell.label.replace(_FT, _FEDAVG)
    if cell.run is None:
        return Cell(name, label, overrides, None)
    rows = [_as_fedavg(row) for row in cell.run.rows if row.get("phase") != "fine_tune"]
    last = [row for row in rows if row["event"] == "round" and is_evaluated(row)][-1:]
    for row in rows:
        if row["event"] == "run_finished" and last:
            row |= {name: last[0][name] for name in row if name in last[0] and "accuracy" in name}
            _drop_totals(row)
            row["client_accuracy_mean"] = last[0].get("client_accuracy_mean")
    config = nested(flat(cell.run.config) | {"algorithm.name": "fedavg"})
    environment = dict(cell.run.environment)
    environment["command"] = [_FEDAVG if word == _FT else word for word in environment.get("command") or []]
    run = replace(cell.run, config=config, rows=tuple(rows), environment=environment)
    return Cell(name, label, overrides, run)


def _as_fedavg(row: Row) -> dict[str, Any]:
    if row["event"] != "run_started":
        return dict(row)
    unread = {*row.get("unread_keys", ()), *_FINE_TUNING}
    return {**row, "algorithm": "fedavg", "method": "FedAvg", "unread_keys": sorted(unread)}


def _progress(run: Run | None) -> tuple[bool, int]:
    return (False, -1) if run is None else (run.finished is not None, run.rounds_done)


def _without_places(cell: Cell) -> Cell:
    """The same cell without paths of this machine."""
    overrides = tuple(map(_scrubbed, cell.overrides))
    if cell.run is None:
        return replace(cell, label=_scrubbed(cell.label), overrides=overrides)
    config = nested({key: _PLACES.get(key, value) for key, value in flat(cell.run.config).items()})
    environment = dict(cell.run.environment)
    environment["command"] = list(_command(environment.get("command") or []))
    run = replace(cell.run, config=config, environment=environment)
    return Cell(cell.name, _scrubbed(cell.label), overrides, run)


def _command(words: Sequence[object]) -> Iterator[str]:
    for number, word in enumerate(map(str, words)):
        yield "ssfl" if not number else _scrubbed(word)


def _scrubbed(word: str) -> str:
    """A word, or a line of words, without paths of this machine; paths with spaces are in quotes."""
    return _PLACE.sub(lambda found: f"{found[1]}={_PLACES[found[1]]}", word)


def main(words: Sequence[str]) -> int:
    """[--with-fedavg] SWEEP... FILE."""
    places = [Path(word) for word in words if word != "--with-fedavg"]
    if len(places) < 2 or places[-1].suffix != ".json":
        print("usage: python -m ssfl.report.runs.collect [--with-fedavg] SWEEP... FILE.json", file=sys.stderr)
        return 2
    try:
        count = collect(places[:-1], places[-1], "--with-fedavg" in words)
    except RunError as error:
        print(f"collect: {error}", file=sys.stderr)
        return 1
    print(f"{count} runs: {places[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
