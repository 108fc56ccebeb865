"""What the runs of a study say about its claims: paired differences, the paper's figures, and a conclusion by rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, final

from ssfl.report.paper.published import Published, find
from ssfl.report.runs.settings import Setting
from ssfl.report.studies.complete import complete, flat_accuracies
from ssfl.report.studies.definition import (
    NAMES,
    SOURCES,
    Accuracy,
    Claim,
    Gap,
    Selector,
    Study,
)
from ssfl.report.studies.paired import LEVEL, Difference, by_seed, difference
from ssfl.report.studies.versions import Versions, versions_of
from ssfl.report.tables.grid import draw

Conclusion = Literal["holds", "does not hold", "inconclusive"]
RULE = f"""\
**Holds**: the whole {100 * LEVEL:g} % interval is above 0. **Does not hold**: it is wholly below 0.
**Inconclusive**: it includes 0, so these seeds show no difference; that is not equality, and the interval says how
large a difference may still be. Differences are paired by seed, in points; the interval is Student's t with n − 1
degrees of freedom, for each row alone (not corrected for the number of rows). *global*: the global model on the whole
test set; *clients*: the mean over clients of each client's own model on its own test split; the two must not be
compared. A method without a global model has only *clients*; `?` marks an accuracy of the paper that we assume. *also
differ in*: learning rates, other settings, and letters of code and machine, which the study's results.md explains.
"""
"""How conclusions are drawn; part of every study's page."""
NOTHING_SHARED = "no seed or flat accuracy in common"


@final
@dataclass(frozen=True)
class Finding:
    """A claim in one accuracy; without a difference if a setting is missing or its settings share no seed."""

    claim: Claim
    accuracy: Accuracy | None
    gap: Difference | None
    missing: tuple[Selector, ...]
    """Settings that are not in the tables: not finished, not flat, or run in several ways."""
    remark: str
    """In what else the settings differ: learning rates, code and machine."""

    @property
    def concluded(self) -> str:
        """The last cell of its row."""
        if self.gap is None:
            return (
                f"not in the tables: {', '.join(map(str, self.missing))}" if self.missing else NOTHING_SHARED
            )
        verdict = conclusion(self.gap)
        return f"inconclusive at n = {len(self.gap.by_seed)}" if verdict == "inconclusive" else verdict


def conclusion(gap: Difference) -> Conclusion:
    """By the rule of `RULE`: holds | does not hold | inconclusive (also for a single seed)."""
    if gap.interval is None:
        return "inconclusive"
    low, high = gap.interval
    if low > 0:
        return "holds"
    return "does not hold" if high < 0 else "inconclusive"


def findings(study: Study, found: Sequence[Setting]) -> list[Finding]:
    """Every claim in every accuracy that its settings have, in the study's order."""
    done, versions = dict(complete(study, found)), versions_of(found)
    return [finding for claim in study.claims for finding in _of_claim(claim, done, versions)]


def _of_claim(claim: Claim, done: dict[Selector, Setting], versions: Versions) -> Iterator[Finding]:
    missing = tuple(dict.fromkeys(selector for selector in claim.selectors if selector not in done))
    if missing:
        yield Finding(claim, None, None, missing, "")
        return
    compared, shared = [done[selector] for selector in claim.selectors], False
    flat = set(NAMES).intersection(*(flat_accuracies(setting) for setting in compared))
    for accuracy in (name for name in claim.accuracies if name in flat):
        by_gap = [_gap_by_seed(gap, done, accuracy) for gap in claim.gaps]
        found = difference(by_gap[0], by_gap[1] if claim.over else dict.fromkeys(by_gap[0], 0.0))
        if found is not None:
            shared = True
            yield Finding(claim, accuracy, found, (), versions.remark(compared))
    if not shared:
        yield Finding(claim, None, None, (), "")


def _gap_by_seed(gap: Gap, done: dict[Selector, Setting], accuracy: Accuracy) -> dict[int, float]:
    found = difference(by_seed(done[gap.first], accuracy), by_seed(done[gap.second], accuracy))
    return dict(found.by_seed) if found else {}


def papers_figure(claim: Claim, accuracy: Accuracy | None, gap: Difference | None) -> str:
    """The paper's difference with its assumed accuracies, and where it is in our interval; "" for another accuracy."""
    if claim.table is None:
        return ""
    if claim.over is not None:
        figures = [_figure(claim.table, each) for each in claim.gaps]
        return "; ".join(f"at {g.first.density:g}: {text}" for g, text in zip(claim.gaps, figures))
    pair = _published(claim.table, claim.gap)
    if pair is None or accuracy is None or gap is None:
        return _figure(claim.table, claim.gap)
    metrics = {entry.metric for entry in pair}
    if len(metrics) == 1 and NAMES[accuracy] not in metrics:
        return ""  # the row of the other accuracy has it
    text = _figure(claim.table, claim.gap)
    ends = gap.interval
    if len(metrics) > 1 or ends is None:
        return text
    points = (pair[0].accuracy_percent - pair[1].accuracy_percent) / 100
    place = "below" if points < ends[0] else "above" if points > ends[1] else "inside"
    return f"{text}: {place} our interval"


def _figure(table: str, gap: Gap) -> str:
    """`+2.25 (88.29 global? − 86.04 global?)`."""
    pair = _published(table, gap)
    if pair is None:
        return "not published"
    first, second = pair
    points = first.accuracy_percent - second.accuracy_percent
    parts = [f"{entry.accuracy_percent:.2f} {entry.metric_said}" for entry in pair]
    return f"{points:+.2f} ({' − '.join(parts)})"


def _published(table: str, gap: Gap) -> tuple[Published, Published] | None:
    first, second = (find(table, s.method, s.density) for s in (gap.first, gap.second))
    return None if first is None or second is None else (first, second)


def claims_table(study: Study, found: Sequence[Setting]) -> str:
    """Markdown, one line per claim and accuracy, with the difference of every seed; also of claims without settings."""
    head = ["claim", "of", "difference", "accuracy", "the paper's figure", "ours [interval], n", "by seed"]
    head += ["also differ in", "conclusion"]
    return draw(head, [_line(f) for f in findings(study, found)], "markdown", None, (0, 1, 2, 3, 4, 7, 8))


def short_claims(study: Study, found: Sequence[Setting]) -> str:
    """The same without seeds, for claims whose settings are there, and a paragraph with the others and densities."""
    every = findings(study, found)
    shown = (0, 2, 3, 4, 5, 7, 8)
    head = ["claim", "difference", "accuracy", "the paper's figure", "ours [interval], n"]
    head += ["also differ in", "conclusion"]
    rows = [[_line(finding)[i] for i in shown] for finding in every if finding.gap]
    text = draw(head, rows, "markdown", None, (0, 1, 2, 3, 5, 6)) if rows else ""
    densities: dict[str, list[str]] = {}
    for finding in every:
        if not finding.gap:
            densities.setdefault(finding.claim.claim, []).append(f"{finding.claim.density:g}")
    if densities:
        open_ones = [f"{claim} (at {', '.join(where)})" for claim, where in densities.items()]
        text += f"\n**Not all settings in the tables, so nothing can be said:** {'; '.join(open_ones)}.\n"
    return text


def papers_claims(study: Study, found: Sequence[Setting]) -> str:
    """Markdown, one line per claim of the paper whose settings are there, with both accuracies."""
    claims: dict[str, dict[Conclusion, list[str]]] = {}
    for finding in findings(study, found):
        claim, gap, name = finding.claim, finding.gap, finding.accuracy
        if claim.source == "paper" and gap and name:
            concluded = claims.setdefault(claim.claim, {}).setdefault(conclusion(gap), [])
            concluded.append(f"{NAMES[name]}, density {claim.density:g}: {gap}")
    lines = {
        claim: "; ".join(f"{verdict} ({'; '.join(parts)})" for verdict, parts in verdicts.items())
        for claim, verdicts in claims.items()
    }
    return "".join(f"- *{claim}*: {text}.\n" for claim, text in lines.items())


def _line(finding: Finding) -> list[str]:
    claim, gap, name = finding.claim, finding.gap, finding.accuracy
    by_seeds = ", ".join(f"{100 * value:+.1f}" for value in gap.by_seed.values()) if gap else ""
    said = [claim.claim, SOURCES[claim.source], str(claim), NAMES[name] if name else ""]
    ours = str(gap) if gap else "–"
    return [*said, papers_figure(claim, name, gap), ours, by_seeds, finding.remark, finding.concluded]
