"""The page of a study from invented runs: claims, adverse results, mixed code, settings run in several ways."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ssfl.report.pages import write_results
from ssfl.report.runs import RunError
from ssfl.report.runs.collect import collect
from ssfl.report.runs.settings import settings
from ssfl.report.studies.bytes_until import megabytes_until, short_adverse
from ssfl.report.studies.claims import findings, papers_claims, papers_figure, short_claims
from ssfl.report.studies.definition import read_study
from ssfl.report.studies.study import insert_tables, write_study
from ssfl.report.studies.versions import versions_of
from tests.support.packed_runs import CODE, write_sweep

RISING = tuple(0.02 * n for n in range(1, 21))
LEVEL = (*RISING[:15], 0.3, 0.301, 0.3, 0.302, 0.3)
SEEDS = (1, 2, 3)
SSFL, FEDAVG = ["SSFL", 0.5], ["FedAvg", 1]
CLAIMS = (
    {"claim": "SSFL >= FedAvg", "source": "paper", "first": SSFL, "second": FEDAVG},
    {"claim": "not run", "source": "study", "first": SSFL, "second": ["SparsyFed", 0.5]},
    {"claim": "grows", "source": "study", "first": SSFL, "second": FEDAVG, "over": [FEDAVG, ["FedAvg-FT", 1]]},
)  # fmt: skip


def held(curve: Sequence[float]) -> tuple[float, ...]:
    """The curve with its last value repeated up to 20 evaluations, so that it is flat."""
    return (*curve, *[curve[-1]] * (20 - len(curve)))


def study(folder: Path, curves: Mapping[str, Sequence[float]] | None = None, **more: Any) -> Path:
    """An experiment with FedAvg(-FT) and SSFL finished, and a setting that was not run."""
    runs = [("ssfl", s, held((0.2, 0.3, 0.41 + 0.001 * s))) for s in SEEDS]
    runs += [("fedavg_ft", s, held((0.2, 0.3, 0.4))) for s in SEEDS]
    if curves:
        runs = [(name, s, held(curve)) for name, curve in curves.items() for s in SEEDS]
    folder.mkdir()
    collect([write_sweep(folder.parent / "sweep", runs)], folder / "runs.json", with_fedavg=True)
    stored = {
        "title": "Made up",
        "paper_table": "cifar10_dir03",
        "settings": [FEDAVG, ["FedAvg-FT", 1], SSFL, ["SparsyFed", 0.5]],
        "claims": CLAIMS,
        "thresholds": {"global_accuracy": [0.3, 0.9], "client_accuracy_mean": [0.4]},
        "bytes_between": [[SSFL, FEDAVG]],
    }
    (folder / "study.json").write_text(json.dumps(stored | more))
    return folder


def test_a_page_says_what_there_is_and_what_is_missing(tmp_path: Path) -> None:
    page = write_study(study(tmp_path / "mine")).read_text()
    assert "**Not finished yet, so not in the tables below:** SparsyFed at 0.5." in page
    ours = "+1.20 [+0.95, +1.45], n = 3 | +1.1, +1.2, +1.3 |  | holds |"
    figure = "+2.25 (88.29 global? − 86.04 global?): above our interval"
    assert f"| SSFL >= FedAvg | the paper | SSFL at 0.5 − FedAvg | global | {figure} | {ours}" in page
    assert f"| SSFL >= FedAvg | the paper | SSFL at 0.5 − FedAvg | clients |  | {ours}" in page
    assert "| not in the tables: SparsyFed at 0.5 |" in page
    assert "| FedAvg-FT | 1 |" in page
    (fedavg,) = [line for line in page.splitlines() if line.startswith("| FedAvg | 1 |")]
    assert "| 40.0 ± 0.0 | 50.0 ± 0.0 |" in fedavg
    assert fedavg.endswith("| A |")
    assert "| SSFL at 0.5 | 0.08 | 0.088 | not reached |" in page
    assert "- A: code 0123456789abcdef (commit c0ffee unchanged)" in page
    assert "instruction set of PyTorch AVX512, of the kernels not recorded; 6 runs of" in page
    assert {p.name for p in (tmp_path / "mine").glob("*.png")} == {"rounds.png", "bytes.png", "sparsity.png"}


def test_the_page_of_results_links_to_the_studys_page_and_has_only_its_short_table(tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir()
    study(tmp_path / "experiments" / "mine")
    page = write_results(tmp_path / "experiments", tmp_path / "docs", draw=False).read_text()
    assert "| method | density | global % | clients % | MB sent |" in page
    assert "learning rates, code and machines: [results](../experiments/mine/results.md)." in page
    assert "SSFL >= FedAvg" not in page
    assert "**Inconclusive**" not in page
    assert "Chosen by" not in page


def test_growth_of_a_gap_is_a_difference_of_differences_of_each_seed(tmp_path: Path) -> None:
    """Global: (SSFL - FedAvg) - (FedAvg - FedAvg-FT) = 0.011, 0.012, 0.013, as FedAvg-FT's global model is FedAvg's."""
    folder = study(tmp_path / "mine")
    found = findings(read_study(folder / "study.json"), settings([folder / "runs.json"]))
    grows = {finding.accuracy: finding.gap for finding in found if finding.claim.claim == "grows"}
    whole, own = grows["global_accuracy"], grows["client_accuracy_mean"]
    assert whole is not None
    assert list(whole.by_seed.values()) == pytest.approx([0.011, 0.012, 0.013])
    assert own is not None  # clients: FedAvg 0.5, fine-tuned 0.9
    assert list(own.by_seed.values()) == pytest.approx([0.411, 0.412, 0.413])


def test_a_papers_figure_is_taken_from_its_table_only_for_the_same_accuracy(tmp_path: Path) -> None:
    folder = study(tmp_path / "mine")
    whole, own, *_ = findings(read_study(folder / "study.json"), settings([folder / "runs.json"]))
    assert papers_figure(whole.claim, "global_accuracy", None) == "+2.25 (88.29 global? − 86.04 global?)"
    assert papers_figure(own.claim, "client_accuracy_mean", own.gap) == ""


def test_fewer_bytes_of_the_other_setting_are_said(tmp_path: Path) -> None:
    """Both curves are the same, and SSFL's scoring is 0.08 MB more, so every threshold needs 0.08 MB more."""
    curve = (0.2, 0.3, 0.4)
    folder = study(tmp_path / "mine", {"ssfl": curve, "fedavg_ft": curve})
    page = write_study(folder, pictures=False).read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("**Against SSFL:**")]
    assert "FedAvg reached each of these accuracies with fewer bytes than SSFL at 0.5 (means)" in line
    assert "30 % global 0.008 against 0.088 MB, 40 % clients 0.008 against 0.088 MB" in line
    assert "One-off scoring and mask: 0.08 MB against 0 MB" in line
    short = short_adverse(read_study(folder / "study.json"), settings([folder / "runs.json"]))
    assert (
        short
        == "To every accuracy that both reached, FedAvg needed fewer bytes than SSFL at 0.5. These are means."
    )


def test_accuracies_that_the_setting_with_more_bytes_reached_alone_are_said(tmp_path: Path) -> None:
    """A random mask costs no scoring, and ends lower."""
    random = ["random global mask", 0.5]
    curves = {"ssfl": (0.2, 0.3, 0.4, 0.9), "random": (0.2, 0.3, 0.4)}
    only: dict[str, Any] = {"settings": [SSFL, random], "claims": [], "bytes_between": [[SSFL, random]]}
    folder = study(tmp_path / "mine", curves, **only)
    page = write_study(folder, pictures=False).read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("**Against SSFL:**")]
    assert "Only SSFL at 0.5 reached 90 % global with all seeds." in line
    found = settings([folder / "runs.json"])
    assert short_adverse(read_study(folder / "study.json"), found) == (
        "To every accuracy that both reached, random global mask needed fewer bytes than SSFL (density 0.5). "
        "These are means."
    )


def test_a_row_of_several_versions_and_pairs_across_versions_are_marked(tmp_path: Path) -> None:
    folder = study(tmp_path / "mine")
    stored = json.loads((folder / "runs.json").read_text())
    stored["environments"].append(
        {**stored["environments"][0], "code": {**CODE, "sources": "bbbb", "modified": True}}
    )
    for cell in stored["cells"]:
        if cell["name"] == "ssfl_s3":
            cell["environment"] = 1
    (folder / "runs.json").write_text(json.dumps(stored))
    page = write_study(folder, pictures=False).read_text()
    (ssfl,) = [line for line in page.splitlines() if line.startswith("| SSFL | 0.5 |")]
    assert ssfl.endswith("| A+B |")
    assert "| code A+B, A | holds |" in page
    assert "- B: code bbbb (commit c0ffee with changed files)" in page


def test_claims_name_the_settings_that_also_differ(tmp_path: Path) -> None:
    """Keys that only one of the two reads are no difference."""
    folder = study(tmp_path / "mine")
    stored = json.loads((folder / "runs.json").read_text())
    stored["config"]["training.batch_size"] = 16
    for cell in stored["cells"]:
        if cell["name"].startswith("ssfl"):
            cell["config"] |= {"training.batch_size": 64, "optimizer.fine_tune_lr": 0.5}
    (folder / "runs.json").write_text(json.dumps(stored))
    page = write_study(folder, pictures=False).read_text()
    assert "| batch_size 64, 16 | holds |" in page
    assert "fine_tune_lr 0.5" not in page.partition("## ")[2]


def test_versions_beyond_z_have_two_letters(tmp_path: Path) -> None:
    (setting,) = [s for s in settings([study(tmp_path / "mine") / "runs.json"]) if s.method == "SSFL"]
    run = setting.finished[0]
    runs = [replace(run, environment={"code": {"sources": f"code{number}"}}) for number in range(28)]
    many = replace(setting, runs=tuple(runs))
    versions = versions_of([many])
    assert [line.partition(":")[0] for line in versions.legend()][24:] == ["- Y", "- Z", "- AA", "- AB"]
    assert versions.of(replace(many, runs=(runs[27], runs[1]))) == "B+AB"


def test_a_setting_that_was_run_in_several_ways_is_named_until_the_study_chooses(tmp_path: Path) -> None:
    folder = study(tmp_path / "mine")
    again = write_sweep(
        tmp_path / "again", [("ssfl", s, held((0.2, 0.3, 0.35))) for s in SEEDS], optimizer={"lr": 0.03}
    )
    plan = json.loads((again / "sweep.json").read_text())
    for cell in plan["cells"]:
        (again / "runs" / cell["name"]).rename(again / "runs" / f"{cell['name']}_retuned")
        cell |= {"name": f"{cell['name']}_retuned", "overrides": [*cell["overrides"], "optimizer.lr=0.03"]}
    (again / "sweep.json").write_text(json.dumps(plan))
    collect([folder / "runs.json", again], folder / "runs.json", with_fedavg=True)
    page = write_study(folder, pictures=False).read_text()
    assert "**Run in several ways, so not in the tables below until study.json names one**" in page
    assert "SSFL at 0.5 (SSFL, density 0.5" in page
    assert "| not in the tables: SSFL at 0.5 |" in page
    assert "Not finished yet, so not in the tables below:** SparsyFed at 0.5." in page
    stored = json.loads((folder / "study.json").read_text())
    stored["settings"][2] = [*SSFL, {"optimizer.lr": 0.03}]
    (folder / "study.json").write_text(json.dumps(stored))
    page = write_study(folder, pictures=False).read_text()
    assert "| SSFL | 0.5 | 0.03 | 3 | 35.0 ± 0.0 |" in page
    assert "SSFL at 0.5, lr=0.03 − FedAvg | global | +2.25 (88.29 global? − 86.04 global?): above our" in page


def test_a_setting_that_still_rises_is_in_no_table(tmp_path: Path) -> None:
    folder = study(tmp_path / "mine", {"ssfl": RISING, "fedavg_ft": LEVEL})
    page = write_study(folder, pictures=False).read_text()
    line = "SSFL at 0.5 (global 39.0 ± 0.0 %, last tenth +4.00 points, clients 49.0 ± 0.0 %, last tenth +4.00 points"
    assert (
        f"**Finished, but not flat by the rule (or of different lengths), so not in the tables below:** {line}"
        in page
    )
    assert "| SSFL |" not in page
    assert "| not in the tables: SSFL at 0.5 |" in page
    assert "| not finished: " not in page
    assert "| FedAvg | 1 |" in page
    assert "Single seeds that gain 1 point or more" in page
    assert "SSFL at 0.5, seed 2: global +4.00" in page


def test_of_a_setting_with_one_flat_accuracy_only_this_one_is_in_tables_and_claims(tmp_path: Path) -> None:
    folder = study(tmp_path / "mine", {"ssfl": RISING, "fedavg_ft": LEVEL})
    stored = json.loads((folder / "runs.json").read_text())
    for cell in stored["cells"]:
        for row in cell["rows"]:
            if cell["name"].startswith("ssfl") and row.get("client_accuracy_mean") is not None:
                row["client_accuracy_mean"] = 0.6
    (folder / "runs.json").write_text(json.dumps(stored))
    page = write_study(folder, pictures=False).read_text()
    assert "SSFL at 0.5 (global 39.0 ± 0.0 %, last tenth +4.00 points)." in page
    assert "| SSFL | 0.5 |  | 3 | not flat | 60.0 ± 0.0 | +4.00 (not flat) / +0.00 |" in page
    (claim,) = [line for line in page.splitlines() if line.startswith("| SSFL >= FedAvg |")]
    assert "| clients |" in claim
    assert "| holds |" in claim


def test_a_curve_that_the_rule_cannot_judge_and_seeds_of_two_lengths_are_in_no_table(tmp_path: Path) -> None:
    folder = study(tmp_path / "mine")
    stored = json.loads((folder / "runs.json").read_text())
    for cell in stored["cells"]:
        rows = cell["rows"]
        if cell["name"].startswith("ssfl"):  # only the last evaluation is left
            cell["rows"] = [rows[0], *rows[-2:]]
        if cell["name"] == "fedavg_ft_s1":  # 30 rounds, flat as the others
            short = [row | ({"round": 30} if row["event"] == "phase" else {}) for row in rows]
            cell["rows"] = [row for row in short if row.get("round", 0) <= 30]
    (folder / "runs.json").write_text(json.dumps(stored))
    page = write_study(folder, pictures=False).read_text()
    assert "| FedAvg | 1 |" in page
    assert "| SSFL |" not in page
    assert re.search(
        r"\(global \S+ ± \S+ %, last tenth not evaluated, clients \S+ ± \S+ %, last tenth not evaluated\)",
        page,
    )
    assert "| FedAvg-FT |" not in page
    assert "runs of 30 and 40 rounds)" in page


def test_a_claim_whose_settings_share_no_seed_is_said(tmp_path: Path) -> None:
    folder = study(tmp_path / "mine", {"ssfl": LEVEL})
    other = write_sweep(tmp_path / "other", [("fedavg_ft", s, LEVEL) for s in (4, 5)])
    collect([folder / "runs.json", other], folder / "runs.json", with_fedavg=True)
    page = write_study(folder, pictures=False).read_text()
    assert "| SSFL at 0.5 − FedAvg |  | +2.25" in page
    assert "| no seed or flat accuracy in common |" in page


def test_an_accuracy_that_only_some_seeds_reach_is_said(tmp_path: Path) -> None:
    folder = study(
        tmp_path / "mine", thresholds={"global_accuracy": [0.412, 0.5]}
    )  # ends at 0.411, 0.412, 0.413
    page = write_study(folder, pictures=False).read_text()
    assert "| SSFL at 0.5 | 0.08 | 2 of 3 seeds | not reached |" in page


@pytest.mark.parametrize(
    "more",
    [
        {"thresholds": {"accuracy": [0.5]}},
        {"claims": [{**CLAIMS[0], "accuracies": ["client_accuracy"]}]},
    ],
)
def test_an_unknown_accuracy_in_a_study_is_refused(more: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"study\.json: .*accuracy '.*'; known: global_accuracy, client_accuracy_mean"
    ):
        write_study(study(tmp_path / "mine", **more))


def test_runs_that_were_extended_are_said_with_their_gain_at_first(tmp_path: Path) -> None:
    """Planned for 30 of 40 rounds: 28 and 30 are the last tenth (27 < r), 26 the one before (24 < r <= 27)."""
    folder = study(tmp_path / "mine", {"ssfl": LEVEL, "fedavg_ft": LEVEL})
    stored = json.loads((folder / "runs.json").read_text())
    for cell in stored["cells"]:
        if cell["name"] in ("ssfl_s1", "ssfl_s3"):
            cell["rows"][0]["rounds"] = 30
            cell["rows"].insert(-1, {"event": "extended", "round": 30, "rounds_before": 30, "rounds": 40})
    (folder / "runs.json").write_text(json.dumps(stored))
    page = write_study(folder, pictures=False).read_text()
    assert "SSFL at 0.5 (seeds 1, 3): 30 rounds to 40, +3.00 / +3.00." in page


def test_bytes_until_an_accuracy_count_the_scoring(tmp_path: Path) -> None:
    (setting,) = [s for s in settings([study(tmp_path / "mine") / "runs.json"]) if s.method == "SSFL"]
    assert megabytes_until(setting.finished[0], 0.25) == pytest.approx((2 * 40_000 + 4 * 2 * 1000) / 1e6)
    assert megabytes_until(setting.finished[0], 0.35, "client_accuracy_mean") == pytest.approx(0.088)
    assert megabytes_until(setting.finished[0], 0.99) is None


def test_short_claims_name_those_without_their_settings_by_their_lowest_density(tmp_path: Path) -> None:
    sparser = ["SparsyFed", 0.2]
    claims = [*CLAIMS, {"claim": "sparser", "source": "study", "first": SSFL, "second": sparser}]
    order = [FEDAVG, ["FedAvg-FT", 1], SSFL, ["SparsyFed", 0.5], sparser]
    folder = study(tmp_path / "mine", claims=claims, settings=order)
    short = short_claims(read_study(folder / "study.json"), settings([folder / "runs.json"]))
    assert (
        "**Not all settings in the tables, so nothing can be said:** not run (at 0.5); sparser (at 0.2)."
        in short
    )


def test_the_papers_claims_are_one_line_each_with_both_accuracies(tmp_path: Path) -> None:
    folder = study(tmp_path / "mine")
    found = papers_claims(read_study(folder / "study.json"), settings([folder / "runs.json"]))
    ours = "density 0.5: +1.20 [+0.95, +1.45], n = 3"
    assert found == f"- *SSFL >= FedAvg*: holds (global, {ours}; clients, {ours}).\n"


def test_tables_are_inserted_between_their_marks(tmp_path: Path) -> None:
    folder, page = study(tmp_path / "mine"), tmp_path / "README.md"
    end = "<!-- end of table -->\n"
    page.write_text(f"a\n<!-- table of mine -->\nold\n{end}b\n<!-- claims of mine -->\n{end}c\n")
    for _ in range(2):
        insert_tables(folder, page)
        table, claims = page.read_text().split("<!-- claims of mine -->\n")
        assert table.startswith("a\n<!-- table of mine -->\n| method |")
        assert table.endswith("|\n<!-- end of table -->\nb\n")
        assert "**Inconclusive**: it includes 0" in claims
        assert claims.endswith("<!-- end of table -->\nc\n")
    page.write_text("nothing")
    with pytest.raises(RunError, match="needs a line <!-- table of mine -->"):
        insert_tables(folder, page)


@pytest.mark.parametrize(
    "change",
    [
        {"claims": [{**CLAIMS[0], "source": "hearsay"}]},
        {"claims": [{**CLAIMS[0], "first": ["SSFL", 0.4]}]},
        {"claims": [{**CLAIMS[0], "first": [*SSFL, {"optimizer.lr": 0.3}]}]},
        {"paper_table": "none such"},
        {"settings": [["SSFL"]]},
        {"settings": [[*SSFL, ["optimizer.lr"]]]},
        {"thresholds": 3},
    ],
)
def test_a_damaged_study_is_one_line(change: dict[str, Any], tmp_path: Path) -> None:
    folder = study(tmp_path / "mine", **change)
    with pytest.raises(RunError, match=r"study\.json: cannot be read as a study"):
        write_study(folder)


def test_a_claim_about_a_setting_that_the_study_lacks_names_both(tmp_path: Path) -> None:
    folder = study(tmp_path / "mine", claims=[{**CLAIMS[0], "first": [*SSFL, {"optimizer.lr": 0.3}]}])
    says = "SSFL at 0.5, lr=0.3 is not one of its settings: SSFL at 0.5"
    with pytest.raises(RunError, match=re.escape(says)):
        read_study(folder / "study.json")
