"""Which sites take part in a run: late ones, changes of the roster, no node keys, sites that refuse."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from ssfl.deploy.federation.roster import Member, Roster, save_roster
from ssfl.deploy.protocol import message_bytes, messages
from ssfl.deploy.server.exchange import QuorumError
from ssfl.deploy.server.run import run_words
from ssfl.deploy.server.run_record import OPEN_VARIABLE, load_records
from ssfl.deploy.transport.port import Message, SiteInfo
from tests.deploy.fake_fleet import FakeFleet, listed_log
from tests.deploy.server_runs import Crash, answering, crash_at, events, fleet_of, words_in


def test_a_late_site_takes_part_from_the_next_round_on(tmp_path: Path, home: Path) -> None:
    fleet, lines = fleet_of(tmp_path), []  # type: ignore[var-annotated]
    late = fleet.sites_by_node[102]
    late.online = False

    def come(message: Message, answer: Message | str) -> Message | str:
        work = message_bytes.unpack(message)
        if isinstance(work, messages.Work) and work.round == 2:
            late.online = True
            time.sleep(1.2)  # the server looks for sites once a second
        return answer

    fleet.sites_by_node[100].fault = come
    folder = run_words(fleet, words_in(tmp_path, "training.comm_round=9"), log=listed_log(lines))
    assert any(line["event"] == "started_without" for line in lines)
    assert any(line["event"] == "late_sites" for line in lines)
    assert late.trainer.run == ""
    works = [work for work in late.served if isinstance(work, messages.Work)]
    assert works
    assert works[0].missed, "the mask comes with its first work"
    deployment = json.loads((folder / "deployment.json").read_text())
    assert deployment["counts"].keys() == {"0", "1", "2"}
    trained = [event for event in events(folder) if event["event"] in ("phase", "round")]
    after = deployment["late"]["2"]
    assert [event["clients"] for event in trained] == [2] * after + [3] * (len(trained) - after)


def test_a_resumed_run_adds_late_sites_before_the_same_exchange(tmp_path: Path, home: Path) -> None:
    """Two of three clients in a round (one of two before): the rounds after the checkpoint have the same bits again."""
    fleet = fleet_of(tmp_path)
    late = fleet.sites_by_node[102]
    late.online = False

    def come(message: Message, answer: Message | str) -> Message | str:
        work = message_bytes.unpack(message)
        if isinstance(work, messages.Work) and work.phase == "train" and work.round == 4:
            late.online = True
            time.sleep(1.2)  # the server looks for sites once a second
        return answer

    for site in fleet.sites_by_node.values():
        site.fault = come
    crash_at(fleet, 8)
    more = (
        "training.comm_round=12",
        "training.frac=0.67",
        "training.frequency_of_the_test=1",
        "deploy.checkpoint_rounds=5",
    )
    with pytest.raises(Crash):
        run_words(fleet, words_in(tmp_path, *more), log=listed_log([]))
    (record,) = load_records(home)
    before = [one for one in events(Path(record.folder)) if one["event"] == "round"]
    fleet = fleet_of(tmp_path)  # all three are online from the start
    folder = run_words(fleet, [], resume=record.folder, log=listed_log([]))
    after = [one for one in events(folder) if one["event"] == "round"]
    assert len({one["clients"] for one in before}) == 2
    assert all(one["global_loss"] > 0 for one in before)
    for key in ("round", "clients", "uplink_bytes", "global_loss"):
        assert [one[key] for one in after[: len(before)]] == [one[key] for one in before]
    assert len(after) == 12


def test_sites_registered_during_a_run_take_part_if_their_number_fits(tmp_path: Path, home: Path) -> None:
    """Clients 1 and 2 are registered after the start, with numbers from 0 to 1 in this run (deploy.sites=2)."""
    home.mkdir()
    fleet, lines = fleet_of(tmp_path), list[dict[str, Any]]()
    save_roster(home, Roster((Member(0, "a", "key-0"),), ()))

    def register(message: Message, answer: Message | str) -> Message | str:
        work = message_bytes.unpack(message)
        if isinstance(work, messages.Work) and work.round == 2:
            save_roster(home, Roster(tuple(Member(c, f"site-{c}", f"key-{c}") for c in range(3)), ()))
            time.sleep(1.2)  # the server looks for sites once a second
        return answer

    fleet.sites_by_node[100].fault = register
    words = words_in(tmp_path, "training.comm_round=9", "deploy.sites=2")
    folder = run_words(fleet, words, log=listed_log(lines))
    assert json.loads((folder / "deployment.json").read_text())["counts"].keys() == {"0", "1"}
    (line,) = [line for line in lines if line["event"] == "site_left_out"]
    assert line["client"] == 2
    assert "client 2 does not take part: this run was started for clients 0 to 1" in line["text"]
    assert any(isinstance(m, messages.Work) for m in fleet.sites_by_node[101].served)


def test_a_resumed_run_keeps_its_number_of_clients(tmp_path: Path, home: Path) -> None:
    """Its results have no place for clients whose numbers were registered since."""
    home.mkdir()
    save_roster(home, Roster((Member(0, "a", "key-0"),), ()))
    fleet = fleet_of(tmp_path)
    crash_at(fleet, 3)
    with pytest.raises(Crash):
        run_words(fleet, words_in(tmp_path, "deploy.sites=1"), log=listed_log([]))
    save_roster(home, Roster(tuple(Member(c, f"site-{c}", f"key-{c}") for c in range(3)), ()))
    (record,) = load_records(home)
    fleet, lines = fleet_of(tmp_path), list[dict[str, Any]]()

    def slowly(message: Message, answer: Message | str) -> Message | str:
        time.sleep(0.6)  # the server looks for sites once a second
        return answer

    fleet.sites_by_node[100].fault = slowly
    folder = run_words(fleet, [], resume=record.folder, log=listed_log(lines))
    assert [e["clients"] for e in events(folder) if e["event"] == "round"] == [1] * 4
    assert {line["client"] for line in lines if line["event"] == "site_left_out"} == {1, 2}


def test_a_roster_that_cannot_be_read_changes_nothing(tmp_path: Path, home: Path) -> None:
    home.mkdir()
    save_roster(home, Roster(tuple(Member(c, f"site-{c}", f"key-{c}") for c in range(3)), ()))
    fleet, lines = fleet_of(tmp_path), list[dict[str, Any]]()

    def spoil(message: Message, answer: Message | str) -> Message | str:
        (home / "roster.json").write_text("{")
        time.sleep(0.5)
        return answer

    fleet.sites_by_node[100].fault = spoil
    run_words(fleet, words_in(tmp_path), log=listed_log(lines))
    assert [line["level"] for line in lines if line["event"] == "roster_unreadable"] == ["error"]


def test_a_roster_that_cannot_be_read_from_the_start_changes_nothing(tmp_path: Path, home: Path) -> None:
    """Not even once after the server has read it: no site is dropped as unknown."""
    home.mkdir()
    save_roster(home, Roster(tuple(Member(c, f"site-{c}", f"key-{c}") for c in range(3)), ()))
    raw = (home / "roster.json").read_bytes()
    fleet, lines = fleet_of(tmp_path), list[dict[str, Any]]()
    sites, log = fleet.sites, listed_log(lines)
    info = log.info

    def spoil(event: str, text: str = "", **fields: Any) -> None:
        if event == "waiting" and text.startswith("0 of 3"):  # just before the registry reads it
            (home / "roster.json").write_bytes(b"{")
        info(event, text, **fields)

    def restore() -> tuple[SiteInfo, ...]:
        (home / "roster.json").write_bytes(raw)
        return sites()

    log.info = spoil
    fleet.sites = restore  # type: ignore[method-assign]
    run_words(fleet, words_in(tmp_path, "training.comm_round=1"), log=log)
    found = [line["event"] for line in lines]
    assert found.count("roster_unreadable") == 1
    assert "roster_changed" not in found
    assert "site_refused" not in found


def test_without_node_keys_the_roster_does_not_count(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --insecure every site makes a new key and registers it itself; it asks for its client number."""
    home.mkdir()
    save_roster(home, Roster(tuple(Member(c, f"site-{c}", f"registered-{c}") for c in range(3)), ()))
    monkeypatch.setenv(OPEN_VARIABLE, "1")
    folder = run_words(fleet_of(tmp_path), words_in(tmp_path, "training.comm_round=1"), log=listed_log([]))
    assert [e["clients"] for e in events(folder) if e["event"] == "round"] == [3]


def test_without_node_keys_sites_that_ask_for_no_number_get_different_ones(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OPEN_VARIABLE, "1")
    fleet = fleet_of(tmp_path)
    for site in fleet.sites_by_node.values():
        site.trainer.wish = -1
    folder = run_words(fleet, words_in(tmp_path, "training.comm_round=1"), log=listed_log([]))
    assert [e["clients"] for e in events(folder) if e["event"] == "round"] == [3]


def test_without_node_keys_a_second_site_with_the_same_number_is_refused_with_the_reason(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OPEN_VARIABLE, "1")
    fleet, lines = fleet_of(tmp_path), list[dict[str, Any]]()
    fleet.sites_by_node[102].trainer.wish = 0
    run_words(fleet, words_in(tmp_path, "training.comm_round=1"), log=listed_log(lines))
    (reason,) = {line["text"] for line in lines if line["event"] == "answer_refused"}
    assert reason == "node 102: asks to be client 0, which is already node 100 (client 0)"


def test_no_site_at_all_stops_the_run_before_anything_is_written(tmp_path: Path, home: Path) -> None:
    with pytest.raises(QuorumError, match="0 of 3 sites have joined"):
        run_words(FakeFleet(), words_in(tmp_path, "deploy.patience_seconds=0.5"), log=listed_log([]))
    assert not (tmp_path / "outputs").exists()
    assert load_records(home)[0].status == "failed"


def test_a_run_that_the_sites_refuse_ends_with_their_reason(tmp_path: Path, home: Path) -> None:
    words = words_in(tmp_path, "model.name=torch.nn:Linear", "deploy.server_data=false")
    with pytest.raises(QuorumError, match=r"too many refuse: .*client 0\): model\.name=torch"):
        run_words(fleet_of(tmp_path), words, log=listed_log([]))
    (record,) = load_records(home)
    assert record.status == "failed"
    assert not (tmp_path / "outputs").exists()


def test_a_site_with_other_class_names_is_told_which_site_joined_first(tmp_path: Path, home: Path) -> None:
    fleet = fleet_of(tmp_path)
    fleet.sites_by_node[102].fault = answering(classes="other")
    words = words_in(tmp_path, "deploy.quorum=1", "deploy.patience_seconds=1", "deploy.start_seconds=1")
    reason = r"client 2\): its classes have other names, or another order, than those of client \d, which joined first"
    with pytest.raises(QuorumError, match=reason):
        run_words(fleet, words, log=listed_log([]))


def test_a_run_without_a_quorum_ends_with_the_reasons_of_the_sites_that_refuse(
    tmp_path: Path, home: Path
) -> None:
    """Also if other sites never connect."""
    fleet = fleet_of(tmp_path)
    fleet.sites_by_node[101].online = False
    fleet.sites_by_node[102].fault = answering(classes="other")
    words = words_in(tmp_path, "deploy.quorum=1", "deploy.patience_seconds=2")
    reason = (
        r"^1 of 3 sites have joined, 3 are needed \(deploy\.quorum\); refused: .*its classes have other names"
    )
    with pytest.raises(QuorumError, match=reason):
        run_words(fleet, words, log=listed_log([]))
