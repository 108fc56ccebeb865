"""The definition of a study, its study.json: settings, claims, and accuracies up to which bytes are counted."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from ssfl.report.paper.published import TABLES
from ssfl.report.runs.labels import density
from ssfl.report.runs.run import RunError
from ssfl.report.runs.settings import Setting

STUDY = "study.json"
Accuracy = Literal["global_accuracy", "client_accuracy_mean"]
NAMES: Mapping[Accuracy, str] = {"global_accuracy": "global", "client_accuracy_mean": "clients"}
Source = Literal["paper", "study"]
SOURCES: Mapping[Source, str] = {"paper": "the paper", "study": "this study"}


@final
@dataclass(frozen=True)
class Selector:
    """A setting by method and density, and by other keys where these two are not enough."""

    method: str
    density: float
    keys: tuple[tuple[str, float | str], ...] = ()

    def __str__(self) -> str:
        more = "".join(f", {key.rpartition('.')[2]}={value}" for key, value in self.keys)
        return self.method + (f" at {self.density:g}" if self.density != 1 else "") + more

    def matches(self, found: Sequence[Setting]) -> list[Setting]:
        """The begun settings of this method and density with these keys."""
        return [s for s in found if s.runs and s.method == self.method and self._fits(s)]

    def find(self, found: Sequence[Setting]) -> Setting | None:
        """The only setting that matches; None if none was begun, or several were (`ambiguous` names them)."""
        matching = self.matches(found)
        return matching[0] if len(matching) == 1 else None

    def _fits(self, setting: Setting) -> bool:
        run = setting.runs[0]
        return density(run) == self.density and all(run.setting(key) == value for key, value in self.keys)


@final
@dataclass(frozen=True)
class Gap:
    """A difference of two settings, first minus second."""

    first: Selector
    second: Selector

    def __str__(self) -> str:
        return f"{self.first} − {self.second}"


@final
@dataclass(frozen=True)
class Claim:
    """A statement that a gap, or its growth over another gap, is not below 0."""

    claim: str
    source: Source
    gap: Gap
    over: Gap | None
    """The gap of which `gap` is the growth; None: the claim is about `gap` itself."""
    accuracies: tuple[Accuracy, ...]
    table: str | None
    """The published table (`ssfl.report.paper.TABLES`) with the paper's figures; None: not published."""

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """The one or two gaps."""
        return (self.gap,) if self.over is None else (self.gap, self.over)

    @property
    def selectors(self) -> tuple[Selector, ...]:
        """All settings that it needs."""
        return tuple(selector for gap in self.gaps for selector in (gap.first, gap.second))

    @property
    def density(self) -> float:
        """The lowest density of its settings."""
        return min(selector.density for selector in self.selectors)

    def __str__(self) -> str:
        return str(self.gap) if self.over is None else f"({self.gap}) − ({self.over})"


@final
@dataclass(frozen=True)
class Study:
    """The content of study.json."""

    title: str
    order: tuple[Selector, ...]
    """All settings of the study, in the order of its table."""
    claims: tuple[Claim, ...]
    thresholds: Mapping[Accuracy, tuple[float, ...]]
    """Accuracies (0-1) up to which bytes are counted."""
    bytes_between: tuple[Gap, ...]
    """Settings whose bytes to an accuracy are compared."""


def read_study(path: Path) -> Study:
    """Read a study.json. Raises RunError if it is damaged."""
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        thresholds: Mapping[str, Sequence[float]] = dict(stored["thresholds"])
        _accuracies(thresholds)
        order = tuple(_selector(entry) for entry in stored["settings"])
        return Study(
            stored["title"],
            order,
            tuple(_claim(c, order, stored.get("paper_table")) for c in stored["claims"]),
            {name: tuple(thresholds.get(name, ())) for name in NAMES},
            tuple(_gap(pair, order) for pair in stored.get("bytes_between", ())),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: cannot be read as a study ({error})") from None


def ambiguous(study: Study, found: Sequence[Setting]) -> dict[Selector, list[Setting]]:
    """Settings of the study that several begun settings match, for example after a second search for a rate."""
    several = {selector: selector.matches(found) for selector in study.order}
    return {selector: matching for selector, matching in several.items() if len(matching) > 1}


def _selector(entry: Sequence[Any]) -> Selector:
    """[METHOD, DENSITY] or [METHOD, DENSITY, {KEY: VALUE}]."""
    name, share, *more = entry
    return Selector(name, float(share), tuple(sorted(more[0].items())) if more else ())


def _gap(pair: Sequence[Any], order: Sequence[Selector]) -> Gap:
    first, second = (_of_the_study(_selector(entry), order) for entry in pair)
    return Gap(first, second)


def _of_the_study(selector: Selector, order: Sequence[Selector]) -> Selector:
    """The study's setting of this method and density, whose further keys need not be repeated if it is the only one."""
    if selector in order:
        return selector
    similar = [s for s in order if (s.method, s.density) == (selector.method, selector.density)]
    if len(similar) != 1 or selector.keys:
        raise ValueError(f"{selector} is not one of its settings: {'; '.join(map(str, similar or order))}")
    return similar[0]


def _accuracies(names: Collection[str]) -> tuple[Accuracy, ...]:
    """The names, checked."""
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise ValueError(f"accuracy {unknown[0]!r}; known: {', '.join(NAMES)}")
    return tuple(name for name in NAMES if name in names)


def _claim(stored: Mapping[str, Any], order: Sequence[Selector], table: str | None) -> Claim:
    source, table = stored["source"], stored.get("paper_table", table)
    if source not in SOURCES or table not in (*TABLES, None):
        raise ValueError(f"source {source!r}, paper_table {table!r}")
    over = stored.get("over")
    return Claim(
        stored["claim"],
        source,
        _gap((stored["first"], stored["second"]), order),
        None if over is None else _gap(over, order),
        _accuracies(stored.get("accuracies", NAMES)),
        table if source == "paper" else None,
    )
