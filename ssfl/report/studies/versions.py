"""Code and machine of a study's runs, as letters for its tables and a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from ssfl.report.runs.labels import code_of, recipe, seed
from ssfl.report.runs.run import Run
from ssfl.report.runs.settings import Setting

_COMMIT_DIGITS = 12


class Origin(NamedTuple):
    """What computed a run, as far as its numbers may depend on it."""

    code: str
    instruction_set: str
    kernels_instruction_set: str
    processor: str


def origin(run: Run) -> Origin:
    """Of one run, from its environment.json."""
    recorded = run.environment
    facts = (recorded.get(name) for name in ("instruction_set", "kernels_instruction_set", "processor"))
    return Origin(code_of(run), *(str(fact or "not recorded") for fact in facts))


@final
@dataclass(frozen=True)
class Versions:
    """A letter for each combination of code and machine: A, B, ..., Z, AA, AB, ..."""

    letters: Mapping[Origin, str]
    runs: tuple[Run, ...]

    def of(self, *settings: Setting) -> str:
        """The letters of the finished runs of some settings: `A`, or `A+B`."""
        made = {self.letters[origin(run)] for setting in settings for run in setting.finished}
        return "+".join(letters for letters in self.letters.values() if letters in made)

    def remark(self, compared: Sequence[Setting]) -> str:
        """Learning rates, other settings of data, network and training, and letters of code and machine, where the
        settings differ in them or average several."""
        recipes = [recipe(setting.finished[0]) for setting in compared]
        shared = [key for key in recipes[0] if all(key in one for one in recipes)]
        others = [
            f"{key.rpartition('.')[2]} {', '.join(str(one[key]) for one in recipes)}"
            for key in shared
            if len({repr(one[key]) for one in recipes}) > 1
        ]
        rates = [str(setting.finished[0].setting("optimizer.lr", "")) for setting in compared]
        made = [self.of(setting) for setting in compared]
        parts = [f"lr {', '.join(rates)}"] if len(set(rates)) > 1 else []
        mixed = len(set(made)) > 1 or any("+" in letters for letters in made)
        return "; ".join([*parts, *others, *([f"code {', '.join(made)}"] if mixed else [])])

    def legend(self) -> list[str]:
        """One line of Markdown per letter."""
        return [self._line(letter, which) for which, letter in self.letters.items()]

    def _line(self, letter: str, which: Origin) -> str:
        runs = [run for run in self.runs if origin(run) == which]
        minutes = sorted(run.wall_seconds / 60 for run in runs)
        commits = dict.fromkeys(_commit(code) for run in runs for code in run.code_records)
        return (
            f"- {letter}: code {which.code} ({'; '.join(commits)}), {which.processor},"
            f" instruction set of PyTorch {which.instruction_set}, of the kernels {which.kernels_instruction_set};"
            f" {len(runs)} {'run' if len(runs) == 1 else 'runs'} of {minutes[0]:.0f} to {minutes[-1]:.0f} minutes"
        )


def versions_of(found: Sequence[Setting]) -> Versions:
    """Letters in the order of the settings; a run that gives two rows (FedAvg before its fine-tuning) counts once."""
    finished = [run for setting in found for run in setting.finished]
    origins = dict.fromkeys(map(origin, finished))
    letters = {which: _letters(number) for number, which in enumerate(origins)}
    once = {(origin(run), seed(run), _curve(run)): run for run in finished}
    return Versions(letters, tuple(once.values()))


def _letters(number: int) -> str:
    """0, 1, ... as A, ..., Z, AA, AB, ..."""
    above, last = divmod(number, 26)
    return (_letters(above - 1) if above else "") + chr(ord("A") + last)


def _curve(run: Run) -> tuple[object, ...]:
    rows = [row for row in run.evaluations if row["event"] == "round"]
    return tuple((row["round"], row.get("global_accuracy"), row.get("client_accuracy_mean")) for row in rows)


def _commit(code: Mapping[str, Any]) -> str:
    if not code.get("commit"):
        return "outside a checkout"
    changed = {True: "with changed files", False: "unchanged", None: "changes unknown"}[code.get("modified")]
    return f"commit {str(code['commit'])[:_COMMIT_DIGITS]} {changed}"
