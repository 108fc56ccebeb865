"""Bytes until a run first reaches an accuracy: means over seeds, differences paired by seed, and adverse results."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import accumulate

from ssfl.report.runs.labels import seed
from ssfl.report.runs.run import Run
from ssfl.report.runs.settings import Setting
from ssfl.report.studies.complete import complete
from ssfl.report.studies.definition import NAMES, Accuracy, Gap, Selector, Study
from ssfl.report.studies.paired import Difference, difference
from ssfl.report.studies.versions import versions_of
from ssfl.report.tables.grid import draw

_BYTES = ("downlink_bytes", "uplink_bytes", "peer_bytes")


def short(value: float) -> str:
    """At least three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def megabytes_until(run: Run, level: float, accuracy: Accuracy = "global_accuracy") -> float | None:
    """Megabytes sent until the first evaluation with that accuracy (0-1), including one-off phases before it.

    None if it is not reached.
    """
    sent = accumulate(sum(row.get(name) or 0 for name in _BYTES) / 1e6 for row in run.exchanges)
    for total, row in zip(sent, run.exchanges):
        if (row.get(accuracy) or 0.0) >= level:
            return total
    return None


def by_seed_until(setting: Setting, level: float, accuracy: Accuracy) -> dict[int, float] | None:
    """Megabytes by seed; None unless every finished seed reaches the accuracy."""
    reached = {seed(run) or 0: megabytes_until(run, level, accuracy) for run in setting.finished}
    known = {number: value for number, value in reached.items() if value is not None}
    return known if known and len(known) == len(reached) else None


def bytes_table(study: Study, found: Sequence[Setting], accuracy: Accuracy) -> str:
    """Mean megabytes of every complete setting to each threshold; "" without thresholds."""
    levels = study.thresholds[accuracy]
    rows = []
    for selector, setting in complete(study, found):
        if any(row.get(accuracy) is not None for run in setting.finished for row in run.evaluations):
            means = [_reached(setting, level, accuracy) for level in levels]
            rows.append([str(selector), _mean_megabytes_once(setting), *means])
    head = ["setting", "MB once", *(f"MB to {100 * level:g} % {NAMES[accuracy]}" for level in levels)]
    return draw(head, rows, "markdown", None, text_columns=(0,)) if levels else ""


def _reached(setting: Setting, level: float, accuracy: Accuracy) -> str:
    """Mean megabytes, or how many seeds reached the accuracy if not all did."""
    values = by_seed_until(setting, level, accuracy)
    if values:
        return _mean(values)
    count = sum(megabytes_until(run, level, accuracy) is not None for run in setting.finished)
    return f"{count} of {len(setting.finished)} seeds" if count else "not reached"


def _mean(values: dict[int, float] | None) -> str:
    return short(statistics.fmean(values.values())) if values else "not reached"


def _mean_megabytes_once(setting: Setting) -> str:
    """One-off phases before the first round: scores and masks."""
    before = []
    for run in setting.finished:
        phases = [row for row in run.exchanges if row["event"] == "phase" and row.get("round", 0) == 0]
        before.append(sum(row.get(name) or 0 for row in phases for name in _BYTES) / 1e6)
    return short(statistics.fmean(before))


def byte_differences_table(study: Study, found: Sequence[Setting]) -> str:
    """Differences in megabytes for the study's pairs, paired by seed; "" if none is complete."""
    rows = [
        [str(pair), NAMES[name], f"{100 * level:g}", _megabytes(gap), _fewer(gap, pair)]
        for pair, name, level, gap in _differences(study, found)
    ]
    head = ["difference", "accuracy", "to %", "MB [95 % interval], n", "fewer bytes"]
    return draw(head, rows, "markdown", None, text_columns=(0, 1, 4)) if rows else ""


def adverse(study: Study, found: Sequence[Setting]) -> list[str]:
    """One line for each pair whose second setting reached every accuracy that both reach with fewer bytes (means)."""
    done = dict(complete(study, found))
    lines = []
    for pair, cases in _fewer_everywhere(study, found).items():
        parts = [_against(pair, done, name, level) for name, level, _ in cases]
        remark = versions_of(found).remark([done[pair.first], done[pair.second]])
        also = f" The two also differ in {remark}." if remark else ""
        excluding = sum(gap.excludes_zero for _, _, gap in cases)
        lines.append(
            f"**Against {pair.first.method}:** {pair.second} reached each of these accuracies with fewer bytes than"
            f" {pair.first} (means): {', '.join(parts)}. The interval of the difference excludes 0 in {excluding} of"
            f" {len(cases)} cases. One-off scoring and mask: {_mean_megabytes_once(done[pair.first])} MB against"
            f" {_mean_megabytes_once(done[pair.second])} MB.{_only(study, pair, done)}{also}"
        )
    return lines


def short_adverse(study: Study, found: Sequence[Setting]) -> str:
    """The pairs of `adverse` in one sentence, those of the same two methods together; "" if there is none."""
    densities: dict[tuple[str, str], list[str]] = {}
    for first, second in ((pair.first, pair.second) for pair in _fewer_everywhere(study, found)):
        if first.density == second.density and not first.keys and not second.keys:
            densities.setdefault((second.method, first.method), []).append(f"{first.density:g}")
        else:
            densities[str(second), str(first)] = []
    parts = [
        f"{second} needed fewer bytes than {first}" + (f" (density {', '.join(at)})" if at else "")
        for (second, first), at in densities.items()
    ]
    return f"To every accuracy that both reached, {'; '.join(parts)}. These are means." if parts else ""


def _fewer_everywhere(
    study: Study, found: Sequence[Setting]
) -> dict[Gap, list[tuple[Accuracy, float, Difference]]]:
    """The pairs whose second setting reached every accuracy that both reach with fewer bytes, and these accuracies."""
    cases: dict[Gap, list[tuple[Accuracy, float, Difference]]] = {}
    for pair, name, level, gap in _differences(study, found):
        cases.setdefault(pair, []).append((name, level, gap))
    return {pair: every for pair, every in cases.items() if all(gap.mean > 0 for _, _, gap in every)}


def _against(pair: Gap, done: dict[Selector, Setting], name: Accuracy, level: float) -> str:
    ours, theirs = (_mean(by_seed_until(done[s], level, name)) for s in (pair.second, pair.first))
    return f"{100 * level:g} % {NAMES[name]} {ours} against {theirs} MB"


def _only(study: Study, pair: Gap, done: dict[Selector, Setting]) -> str:
    """The thresholds that only the first setting reaches with all seeds, as a sentence; "" if there is none."""
    levels = [
        f"{100 * level:g} % {NAMES[name]}"
        for name, levels in study.thresholds.items()
        for level in levels
        if by_seed_until(done[pair.first], level, name) and not by_seed_until(done[pair.second], level, name)
    ]
    return f" Only {pair.first} reached {', '.join(levels)} with all seeds." if levels else ""


def _differences(study: Study, found: Sequence[Setting]) -> Iterator[tuple[Gap, Accuracy, float, Difference]]:
    """Of every pair whose settings are complete and reach the threshold with all seeds."""
    done = dict(complete(study, found))
    for pair in study.bytes_between:
        if pair.first not in done or pair.second not in done:
            continue
        for name, levels in study.thresholds.items():
            for level in levels:
                first, second = (by_seed_until(done[s], level, name) for s in (pair.first, pair.second))
                gap = difference(first, second) if first and second else None
                if gap is not None:
                    yield pair, name, level, gap


def _megabytes(gap: Difference) -> str:
    ends = "" if gap.interval is None else f" [{gap.interval[0]:+,.0f}, {gap.interval[1]:+,.0f}]"
    return f"{gap.mean:+,.0f}{ends}, n = {len(gap.by_seed)}"


def _fewer(gap: Difference, pair: Gap) -> str:
    if not gap.excludes_zero:
        return f"inconclusive at n = {len(gap.by_seed)}"
    return str(pair.first if gap.mean < 0 else pair.second)
