"""A run that crashed or stopped is resumed with the same results, or refused and left as it was."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ssfl import run_folder
from ssfl.config import ConfigError
from ssfl.deploy.commands.follow import follow
from ssfl.deploy.errors import DeployError
from ssfl.deploy.protocol import message_bytes, messages
from ssfl.deploy.server.run import run_words
from ssfl.deploy.server.run_record import Status, load_records, save_record
from ssfl.deploy.transport.port import Message, SiteInfo
from ssfl.errors import UserError
from tests.deploy.fake_fleet import FakeFleet, listed_log
from tests.deploy.oracle import check_ledger, simulated_model
from tests.deploy.server_runs import SITES, WORDS, Crash, crash_at, events, fleet_of, model, words_in


def refused(tmp_path: Path, home: Path, folder: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What `ssfl deploy run --resume` prints when the server refuses."""
    with pytest.raises(UserError):
        run_words(fleet_of(tmp_path), [], resume=folder, flower_run="8", log=listed_log([]))
    assert follow(home, "8", "quiet", lambda recorded: None, seconds=5) == 1
    return capsys.readouterr().err


def test_a_resume_without_a_run_leaves_no_run(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refused(tmp_path, home, str(tmp_path / "nowhere"), capsys)
    assert text.startswith("ssfl: the run was not resumed: ")
    assert "nowhere: not a run folder" in text
    assert load_records(home) == []


@pytest.mark.parametrize("status", ["failed", "stopped", "finished", "running"])
def test_a_run_that_is_not_resumed_stays_as_it_was(
    status: Status, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one in progress, which another process owns; a second attempt is no second record either."""
    folder = run_words(fleet_of(tmp_path), words_in(tmp_path, "training.comm_round=1"), flower_run="7")
    (record,) = load_records(home)
    save_record(home, replace(record, status=status, reason="as it was"))
    before = load_records(home)
    in_progress = run_folder.owned(folder) if status == "running" else contextlib.nullcontext()
    if status != "running":
        (folder / "deployment.json").write_text("{")
    capsys.readouterr()
    with in_progress:
        texts = {refused(tmp_path, home, str(folder), capsys) for _ in range(2)}
    (text,) = texts
    assert ("another process is running this" if status == "running" else "not the folder of") in text
    assert load_records(home) == before


def test_a_run_that_died_before_its_folder_is_started_again_under_its_name(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that the supervisor can count the attempts, and `ssfl deploy run` follows it."""
    words = words_in(tmp_path, "training.comm_round=1")
    fleet = fleet_of(tmp_path)
    sites = fleet.sites

    def dying() -> tuple[SiteInfo, ...]:
        raise RuntimeError("cut")

    fleet.sites = dying  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="cut"):
        run_words(fleet, words, flower_run="7", log=listed_log([]))
    (record,) = load_records(home)
    assert (record.status, record.folder, record.reason) == ("waiting", "", "RuntimeError: cut")
    save_record(home, replace(record, pid=0, flower_run="8"))  # as `Server._resume` does
    fleet.sites = sites  # type: ignore[method-assign]
    run_words(fleet, words, flower_run="8", log=listed_log([]))
    (after,) = load_records(home)
    assert (after.run, after.status, after.restarts, after.reason) == (record.run, "finished", 1, "")
    assert follow(home, "8", "quiet", lambda recorded: None, seconds=5) == 0


@pytest.mark.parametrize("resumed", [False, True])
def test_a_second_run_is_refused_while_one_is_in_progress(
    resumed: bool, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A site holds one run: two would make it build its network again and again."""
    before = run_words(fleet_of(tmp_path), words_in(tmp_path, "training.comm_round=1")) if resumed else None
    fleet = fleet_of(tmp_path)
    texts: list[str] = []

    def second(message: Message, answer: Message | str) -> Message | str:
        work = message_bytes.unpack(message)
        if isinstance(work, messages.Work) and work.round == 2 and not texts:
            with pytest.raises(
                DeployError, match="is in progress, and a server has one run at a time: wait, or"
            ):
                run_words(fleet_of(tmp_path), words_in(tmp_path), str(before or ""), "9", listed_log([]))
            assert follow(home, "9", "quiet", lambda recorded: None, seconds=5) == 1
            texts.append(capsys.readouterr().err)
        return answer

    fleet.sites_by_node[100].fault = second
    folder = run_words(fleet, words_in(tmp_path), flower_run="1", log=listed_log([]))
    assert model(folder).equal(simulated_model(WORDS, SITES, {})), "the first run is not disturbed"
    (first,) = [r for r in load_records(home) if r.folder == str(folder)]
    assert f"ssfl deploy stop {first.run}" in texts[0]
    if resumed:
        assert {r.status for r in load_records(home)} == {"finished"}, "the resumed run stays as it was"


def test_a_new_run_is_refused_while_the_supervisor_is_to_resume_another(tmp_path: Path, home: Path) -> None:
    fleet = fleet_of(tmp_path)
    crash_at(fleet, 2)
    with pytest.raises(Crash):
        run_words(fleet, words_in(tmp_path, "training.comm_round=2"), log=listed_log([]))
    (record,) = load_records(home)
    with pytest.raises(DeployError, match=f"run {record.run} is in progress"):
        run_words(fleet_of(tmp_path), words_in(tmp_path), log=listed_log([]))
    folder = run_words(fleet_of(tmp_path), [], resume=record.folder, log=listed_log([]))
    assert str(folder) == record.folder
    run_words(fleet_of(tmp_path), words_in(tmp_path, "training.comm_round=1"), log=listed_log([]))


def test_a_run_that_the_supervisor_cannot_resume_fails_once(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The supervisor goes on with runs whose status is running: it would be refused twenty times."""
    folder = run_words(fleet_of(tmp_path), words_in(tmp_path, "training.comm_round=1"), flower_run="7")
    (record,) = load_records(home)
    save_record(home, replace(record, status="running", pid=0, flower_run="8"))  # as `Server._resume` does
    (folder / "deployment.json").write_text("{")
    assert "not the folder of" in refused(tmp_path, home, str(folder), capsys)
    (after,) = load_records(home)
    assert (after.run, after.status, after.folder) == (record.run, "failed", str(folder))
    assert "not the folder of" in after.reason


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("algorithm=sparsyfed", "communication.profile=small"),
        ("algorithm=fedavg", "communication.profile=small", "communication.downlink_versions=2"),
        ("algorithm=ssfl", "algorithm.params.warmup_rounds=1"),
    ],
)
def test_a_run_that_crashed_goes_on_with_the_same_bits(
    words: tuple[str, ...], tmp_path: Path, home: Path
) -> None:
    fleet = fleet_of(tmp_path)
    crash_at(fleet, 3)
    with pytest.raises(Crash):
        run_words(fleet, words_in(tmp_path, *words), log=listed_log([]))
    (record,) = load_records(home)
    assert record.status == "running", "the supervisor resumes what says running and has no process"
    folder = run_words(fleet_of(tmp_path), [], resume=record.folder, log=listed_log([]))
    assert model(folder).equal(simulated_model((*WORDS, *words), SITES, {}))
    recorded = events(folder)
    check_ledger(recorded, 4)
    assert [e["round"] for e in recorded if e["event"] == "resumed"] == [2]
    assert load_records(home)[0].restarts == 1


def test_a_crashed_run_of_a_decentralised_method_goes_on_with_its_peers_models(
    tmp_path: Path, home: Path
) -> None:
    words = words_in(tmp_path, "algorithm=dispfl", "communication.profile=balanced")
    folders = []
    for name, crash in (("whole", False), ("crashed", True)):
        fleet = fleet_of(tmp_path / name)
        if crash:
            crash_at(fleet, 3)
            with pytest.raises(Crash):
                run_words(fleet, words, log=listed_log([]))
            (folder,) = (r.folder for r in load_records(home) if r.status == "running")
            assert len(list((Path(folder) / "published").iterdir())) == 2 * SITES
            folders.append(run_words(fleet_of(tmp_path / name), [], resume=folder, log=listed_log([])))
        else:
            folders.append(run_words(fleet, words, log=listed_log([])))
    whole, again = ([e for e in events(folder) if e["event"] == "round"] for folder in folders)
    assert [e["client_loss_mean"] for e in whole] == [e["client_loss_mean"] for e in again]
    assert [e["peer_bytes"] for e in whole] == [e["peer_bytes"] for e in again]
    assert not (folders[1] / "published").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("algorithm=fedavg", "communication.profile=small", "communication.downlink_versions=2"),
        ("algorithm=dispfl",),
    ],
)
def test_a_run_with_few_checkpoints_that_crashed_goes_on_with_the_same_numbers(
    words: tuple[str, ...], tmp_path: Path, home: Path
) -> None:
    """Sites keep their states, and the server its peers' models, since the checkpoint of round 5."""
    words = words_in(tmp_path, *words, "training.comm_round=9", "deploy.checkpoint_rounds=5")  # type: ignore[assignment]
    whole = run_words(fleet_of(tmp_path / "whole"), words, log=listed_log([]))
    fleet = fleet_of(tmp_path / "crashed")
    crash_at(fleet, 9)
    with pytest.raises(Crash):
        run_words(fleet, words, log=listed_log([]))
    (folder,) = (r.folder for r in load_records(home) if r.status == "running")
    again = run_words(fleet_of(tmp_path / "crashed"), [], resume=folder, log=listed_log([]))
    assert [e["round"] for e in events(again) if e["event"] == "resumed"] == [5]
    losses = ([e["client_loss_mean"] for e in events(f) if e["event"] == "round"] for f in (whole, again))
    assert next(losses) == next(losses)


def test_a_run_resumed_over_a_link_is_still_known_by_its_folder(tmp_path: Path, home: Path) -> None:
    fleet = fleet_of(tmp_path)
    crash_at(fleet, 2)
    with pytest.raises(Crash):
        run_words(fleet, words_in(tmp_path), log=listed_log([]))
    (record,) = load_records(home)
    (tmp_path / "link").symlink_to(record.folder)
    crash_at(fleet := fleet_of(tmp_path), 3)
    with pytest.raises(Crash):
        run_words(fleet, [], resume=str(tmp_path / "link"), log=listed_log([]))
    (again,) = load_records(home)
    assert again.folder == record.folder
    run_words(fleet_of(tmp_path), [], resume=again.folder, log=listed_log([]))
    assert load_records(home)[0].status == "finished"


def test_an_edited_configuration_is_refused_by_name_and_a_spoiled_checkpoint_is_passed_over(
    tmp_path: Path, home: Path
) -> None:
    fleet = fleet_of(tmp_path)
    crash_at(fleet, 4)
    with pytest.raises(Crash):
        run_words(fleet, words_in(tmp_path), log=listed_log([]))
    (folder,) = (Path(r.folder) for r in load_records(home) if r.status == "running")
    join = folder / "join.yaml"
    text = join.read_text()
    for before, after, message in (
        ("  lr: 0.1\n", "  lr: 0.2\n", r"join\.yaml: .*optimizer\.lr=0\.2 \(was 0\.1\)"),
        ("comm_round: 4", "comm_round: 5", r"join\.yaml: .*training\.comm_round=5 \(was 4\)"),
    ):
        assert before in text
        join.write_text(text.replace(before, after))
        with pytest.raises(ConfigError, match=message):
            run_words(fleet_of(tmp_path), [], resume=str(folder), log=listed_log([]))
    join.write_text(text.replace("every_seconds: 120.0", "every_seconds: 60.0"))  # changes no number
    sorted((folder / "checkpoints").glob("*.json"))[-1].write_bytes(b"{")
    lines: list[Any] = []
    assert run_words(fleet_of(tmp_path), [], resume=str(folder), log=listed_log(lines)) == folder
    assert any(line["event"] == "checkpoint_passed_over" for line in lines)
    rounds = [e["round"] for e in events(folder) if e["event"] == "round"]
    assert rounds == [1, 2, 3, 4]


def test_resuming_a_folder_without_a_run_is_refused(tmp_path: Path, home: Path) -> None:
    with pytest.raises(ValueError, match="not a run folder"):
        run_words(FakeFleet(), [], resume=str(tmp_path))
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(DeployError, match="not the folder of a deployed run"):
        run_words(FakeFleet(), [], resume=str(tmp_path))
