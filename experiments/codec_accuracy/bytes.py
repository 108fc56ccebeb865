"""Accuracy against bytes of the finished runs of this experiment, as Markdown: uplink, downlink and one-offs apart.

python experiments/codec_accuracy/bytes.py PATH...     folders of runs, or results packed by `ssfl.report.runs.collect`
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ssfl.config import CommunicationConfig
from ssfl.report.runs import Run
from ssfl.report.runs.compact import all_runs
from ssfl.report.runs.labels import density, method, seed
from ssfl.report.studies.flatness import late_accuracy

ROUNDS_OF_A_CLIENT = 100
"""Rounds that a client takes part in, for the column in which one-offs are counted."""
HEAD = (
    "setting",
    "density",
    "seeds",
    "global accuracy %",
    "against exact",
    "MB in all",
    "up B/round",
    "down B/round",
    "once B",
    "rounds",
    "with once",
)
NOTE = f"""\
*MB in all* is what all clients of a run sent and received. Other bytes are those of one client: in a round up and down,
and once (initial model, scores and mask). *rounds*: dense FedAvg's
bytes over these, rounds alone; *with once*: the same for a client that takes part in {ROUNDS_OF_A_CLIENT} rounds,
one-offs included. *against exact*: paired over seeds. Mean ± sample standard deviation."""
METHODS = ("FedAvg", "SSFL", "random global mask")
"""Those shown; the converged study's results hold others too."""
DEFAULTS: Mapping[str, object] = {
    one.name: one.default
    for one in fields(CommunicationConfig)
    if one.name not in ("profile", "measure", "link_mbits", "link_round_trip_ms")
}
"""Settings that change codecs, besides the profile; a run with another value is another setting."""


@dataclass(frozen=True)
class Cell:
    """One setting's finished runs."""

    name: str
    density: float
    runs: Sequence[Run]

    def mean(self, field: str) -> float:
        """Of the runs' totals of an additive field."""
        return statistics.fmean(run.total(field) for run in self.runs)

    @property
    def accuracies(self) -> list[float]:
        """Global accuracy, percent: the mean of a run's evaluations in the last tenth of its rounds."""
        return [100 * (late_accuracy(run, "global_accuracy") or 0.0) for run in self.runs]


def main(paths: Sequence[Path]) -> None:
    """One table."""
    runs = [run for run in all_runs(paths) if run.finished and method(run) in METHODS]
    cells = list(_cells(runs))
    exact = {cell.density: cell for cell in cells if cell.name == "SSFL, exact"}
    print(f"| {' | '.join(HEAD)} |")
    print("|---" * len(HEAD) + "|")
    for cell in cells:
        print("| " + " | ".join(_row(cell, exact.get(cell.density))) + " |")
    print(f"\n{NOTE}")


def _cells(runs: Sequence[Run]) -> Iterator[Cell]:
    groups: dict[tuple[str, float], list[Run]] = {}
    for run in runs:
        groups.setdefault((_name(run), density(run) or 1.0), []).append(run)
    for (name, share), members in sorted(groups.items(), key=lambda item: (-item[0][1], item[0][0])):
        yield Cell(name, share, members)


def _name(run: Run) -> str:
    words, profile = [method(run)], str(run.setting("communication.profile", "exact"))
    if words == ["SSFL"] or profile != "exact":
        words.append(profile)
    for key, default in DEFAULTS.items():
        value = run.setting(f"communication.{key}", default)
        if value != default:
            words.append(f"{key} {value}" if not isinstance(value, bool) else key)
    share = run.setting("algorithm.params.saliency_fraction", 1.0)
    return ", ".join([*words, *([f"{share:g} of the clients score"] if share != 1.0 else [])])


def _row(cell: Cell, exact: Cell | None) -> list[str]:
    rounds = [row for run in cell.runs for row in run.exchanges if row["event"] == "round"]
    asked = sum(run.started["cohort"] * run.rounds_done for run in cell.runs)
    up, down = (sum(row[f"{way}_bytes"] for row in rounds) / asked for way in ("uplink", "downlink"))
    clients = cell.runs[0].started["clients"]
    once = statistics.fmean(run.one_off_bytes for run in cell.runs) / clients
    dense = 2 * cell.runs[0].started["dense_bytes"]
    return [
        cell.name,
        f"{cell.density:g}",
        ", ".join(str(seed(run)) for run in cell.runs),
        _spread(cell.accuracies),
        "" if exact is None or exact is cell else _paired(cell, exact),
        _spread([run.total_bytes / 1e6 for run in cell.runs]),
        f"{up:,.0f}",
        f"{down:,.0f}",
        f"{once:,.0f}",
        f"{dense / (up + down):.1f}x",
        f"{ROUNDS_OF_A_CLIENT * dense / (ROUNDS_OF_A_CLIENT * (up + down) + once):.1f}x",
    ]


def _paired(cell: Cell, exact: Cell) -> str:
    theirs = dict(zip(map(seed, exact.runs), exact.accuracies))
    both = zip(map(seed, cell.runs), cell.accuracies)
    differences = [own - theirs[number] for number, own in both if number in theirs]
    return _spread(differences, signed=True) if differences else ""


def _spread(values: Sequence[float], signed: bool = False) -> str:
    rounded = round(statistics.fmean(values), 2) + 0.0  # + 0.0: no minus before a zero
    mean = f"{rounded:{'+' if signed else ''}.2f}"
    return mean + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
