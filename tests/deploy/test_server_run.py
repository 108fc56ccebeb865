"""A whole run on the server, words to summary, over sites of this process: crash, resume, late sites, full disk."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ssfl import run_folder
from ssfl.assemble.build import federation_of
from ssfl.config import ConfigError, load_config
from ssfl.deploy.commands.follow import follow
from ssfl.deploy.errors import DeployError
from ssfl.deploy.federation.roster import Member, Roster, save_roster
from ssfl.deploy.log import EventLog
from ssfl.deploy.protocol import message_bytes, messages
from ssfl.deploy.server import driver, published, server_run, setup
from ssfl.deploy.server.exchange import QuorumError
from ssfl.deploy.server.run import run_words
from ssfl.deploy.server.run_record import HOME_VARIABLE, OPEN_VARIABLE, Status, load_records, save_record
from ssfl.deploy.server.setup import server_data
from ssfl.deploy.settings import DeploySettings
from ssfl.deploy.site.data import data_of_client
from ssfl.deploy.site.sessions import SiteOptions, builder_of
from ssfl.deploy.site.trainer import Trainer
from ssfl.deploy.transport.port import Message, SiteInfo
from ssfl.errors import UserError
from tests.deploy.fake_fleet import FakeFleet, FakeSite, Fault, listed_log
from tests.deploy.oracle import BITS, check_ledger, simulated_model

SITES = 3
WORDS = ("preset=digits", "training.frac=1.0", "training.epochs=1", "training.comm_round=4", *BITS)
DEPLOY = (
    f"deploy.sites={SITES}",
    "deploy.server_data=true",
    "deploy.start_seconds=0.5",
    "tracking.console=quiet",
)


def fleet_of(folder: Path, words: tuple[str, ...] = WORDS, sites: int = SITES) -> FakeFleet:
    """Sites with shares of the digits, memories below `folder`."""
    config = load_config([*words, f"training.client_num_in_total={sites}"])
    federation = federation_of(replace(config, training=replace(config.training, client_num_in_total=sites)))
    fleet = FakeFleet()
    for client in range(sites):
        options = SiteOptions(config.model.name, device="cpu", state_folder=folder / f"site-{client}")
        build = builder_of(data_of_client(federation, client), options)
        trainer = Trainer(build, EventLog(f"site-{client}", None, None), client)
        fleet.sites_by_node[100 + client] = FakeSite(trainer, f"key-{client}")
    return fleet


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path / "home"


def words_in(tmp_path: Path, *more: str) -> list[str]:
    return [*WORDS, *DEPLOY, f"experiment.output_dir={tmp_path / 'outputs'}", *more]


def model(folder: Path) -> Tensor:
    tensors = load_file(folder / "model.safetensors")
    return torch.cat([tensors[name].reshape(-1) for name in sorted(tensors)])


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_ends_as_the_simulation_does(tmp_path: Path, home: Path) -> None:
    lines: list[dict[str, Any]] = []
    folder = run_words(fleet_of(tmp_path), words_in(tmp_path), log=listed_log(lines))
    assert model(folder).equal(simulated_model(WORDS, SITES, {}))
    check_ledger(events(folder), 4)
    (record,) = load_records(home)
    assert (record.status, record.round, record.folder) == ("finished", 4, str(folder))
    assert not list((tmp_path / "site-0").glob("*/*.safetensors")), "a finished run leaves nothing at a site"
    assert {line["run"] for line in lines if "run" in line} == {record.run}


def tables(folder: Path, model_name: str, kind: type) -> tuple[str, ...]:
    """Words of a run on a table of numbers from 0 to 39, whole or not, as it is stored."""
    x: Any = np.random.default_rng(0).integers(0, 40, (90, 4)).astype(kind)
    np.savez(folder / "table.npz", train_x=x, train_y=np.arange(90) % 2)
    words = (f"dataset.name={folder / 'table.npz'}", "dataset.features=unchanged", f"model.name={model_name}")
    rest = ("dataset.partition_method=iid", "optimizer.lr=0.001", "algorithm=fedavg")
    return *words, *rest, *(word for word in WORDS if word != "preset=digits")


@pytest.mark.parametrize(("network", "kind"), [("Net", np.float32), ("Tokens", np.int32)])
@pytest.mark.parametrize("server_data", ["true", "false"])
def test_tables_may_stay_unchanged(
    network: str, kind: type, server_data: str, tmp_path: Path, home: Path
) -> None:
    """Floats and token numbers, with and without a copy at the server: the simulator's bits, no scaling."""
    words = tables(tmp_path, f"tests.deploy.own_net:{network}", kind)
    ours = [*DEPLOY, f"deploy.server_data={server_data}", f"experiment.output_dir={tmp_path / 'outputs'}"]
    folder = run_words(fleet_of(tmp_path, words), [*words, *ours], log=listed_log([]))
    assert model(folder).equal(simulated_model(words, SITES, {}))


def answering(**changes: object) -> Fault:
    """A site with other fields in its Joined; None: without the field."""

    def fault(message: Message, answer: Message | str) -> Message | str:
        assert isinstance(answer, Message)
        head = json.loads(answer.head)
        if head["kind"] != "joined":
            return answer
        return Message(json.dumps({k: v for k, v in (head | changes).items() if v is not None}).encode())

    return fault


@pytest.mark.parametrize(
    ("shape", "most", "reason"),
    [
        (
            [1 << 33],
            1_000_000,
            r"claims examples of 8\.58993e\+09 values; deploy\.max_example_values=1000000",
        ),
        ([1 << 53] * 3, 1_000_000, "claims examples of"),
        ([1 << 50], 1 << 53, r"no mlp for its examples \[1125899906842624\] \(.*alloc"),
        ([1 << 53, 1 << 20, 1 << 20], 1 << 53, "claims examples of"),
        ([1 << 53, 1, 1], 1 << 53, r"no mlp for its examples"),
    ],
)
def test_a_first_site_that_claims_huge_examples_is_one_refused_site(
    shape: list[int], most: int, reason: str, tmp_path: Path, home: Path
) -> None:
    """The run goes on with the others; the server allocates nothing, or what fails is the site's."""
    words = tables(tmp_path, "mlp", np.float32)
    fleet = fleet_of(tmp_path, words)
    fleet.sites_by_node[100].fault = answering(input_shape=shape)
    lines: list[dict[str, Any]] = []
    ours = (
        *DEPLOY,
        "deploy.server_data=false",
        f"deploy.max_example_values={most}",
        f"experiment.output_dir={tmp_path / 'outputs'}",
    )
    folder = run_words(fleet, [*words, *ours], log=listed_log(lines))
    refusals = [line["text"] for line in lines if line["event"] == "answer_refused"]
    assert refusals
    assert re.search(reason, refusals[0])
    assert "\n" not in refusals[0]
    assert [e["clients"] for e in events(folder) if e["event"] == "round"] == [2] * 4


def test_sites_whose_tables_are_not_alike_are_refused(tmp_path: Path, home: Path) -> None:
    words = tables(tmp_path, "mlp", np.float32)
    fleet = fleet_of(tmp_path, words)
    for inputs, reason in (
        ("whole", "examples are whole numbers, the run's are floats"),
        (None, "update ssfl"),
    ):
        fleet.sites_by_node[102].fault = answering(inputs=inputs)
        with pytest.raises(QuorumError, match=reason):
            run_words(fleet, [*words, *DEPLOY, "deploy.quorum=1"], log=listed_log([]))


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


def test_a_folder_that_cannot_be_made_ends_the_run_in_one_line(tmp_path: Path, home: Path) -> None:
    (tmp_path / "outputs").write_text("a file")
    with pytest.raises(UserError, match=r"^experiment\.output_dir=.*outputs: .*a file exists where a folder"):
        run_words(fleet_of(tmp_path), words_in(tmp_path), log=listed_log([]))
    (record,) = load_records(home)
    assert record.status == "failed"
    assert record.reason.startswith("experiment.output_dir=")


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


class Crash(BaseException):
    """What a kill -9 looks like to the code: no handler runs."""


def crash_at(fleet: FakeFleet, round_: int) -> None:
    """The server dies when it has sent that round's work, before any answer."""
    send = fleet.send

    def dying(outgoing: Any, deadline_seconds: float) -> Any:
        tickets = send(outgoing, deadline_seconds)
        for _, message in outgoing:
            work = message_bytes.unpack(message)
            if isinstance(work, messages.Work) and work.phase == "train" and work.round == round_:
                for node, m in outgoing:  # the sites do the work all the same
                    fleet.sites_by_node[node].trainer.handle(m)
                raise Crash
        return tickets

    fleet.send = dying  # type: ignore[method-assign]


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
    assert any(line["event"] == "begins_without" for line in lines)
    assert any(line["event"] == "late_sites" for line in lines)
    assert late.trainer.run == ""
    works = [work for work in late.served if isinstance(work, messages.Work)]
    assert works
    assert works[0].missed, "the mask comes with its first work"
    assert json.loads((folder / "deployment.json").read_text())["counts"].keys() == {"0", "1", "2"}


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


def test_the_network_is_built_once_for_sites_that_are_alike(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[object] = []
    layout_of = setup.layout_of

    def counted(config: Any, data: Any, first: messages.Joined) -> Any:
        built.append(first.input_shape)
        return layout_of(config, data, first)

    monkeypatch.setattr(server_run, "layout_of", counted)
    run_words(fleet_of(tmp_path), words_in(tmp_path, "training.comm_round=1"), log=listed_log([]))
    assert len(built) == 1


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
    assert reason == "node 102: asks to be client 0, which node 100 (client 0) is already"


def test_no_site_at_all_stops_the_run_before_anything_is_written(tmp_path: Path, home: Path) -> None:
    with pytest.raises(QuorumError, match="0 of 3 sites have joined"):
        run_words(FakeFleet(), words_in(tmp_path, "deploy.patience_seconds=0.5"), log=listed_log([]))
    assert not (tmp_path / "outputs").exists()
    assert load_records(home)[0].status == "failed"


BAD_WORDS = (
    "training.epochs=0",
    "deploy.quorum=2",
    "no.such.key=1",
    "dataset.validation_portion=0.1",
)


@pytest.mark.parametrize("word", BAD_WORDS)
def test_bad_words_are_refused_with_a_record(word: str, tmp_path: Path, home: Path) -> None:
    """No run folder is written; `ssfl deploy run` shows the record's reason, for which it waits."""
    with pytest.raises((ConfigError, DeployError), match=word.partition("=")[0]) as found:
        run_words(FakeFleet(), words_in(tmp_path, word), flower_run="7")
    assert not (tmp_path / "outputs").exists()
    (record,) = load_records(home)
    assert (record.status, record.flower_run, record.reason) == ("failed", "7", str(found.value))


def small_disk(place: Path, kilobytes: int) -> Callable[[], object]:
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    return lambda: subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_waited_for(tmp_path: Path, home: Path) -> None:
    unmount = small_disk(tmp_path / "disk", 4000)
    filler = tmp_path / "disk" / "filler"
    lines: list[dict[str, Any]] = []
    try:
        fleet = fleet_of(tmp_path)

        def fill(message: Message, answer: Message | str) -> Message | str:
            work = message_bytes.unpack(message)
            if isinstance(work, messages.Work) and work.round == 3 and not filler.exists():
                with filler.open("wb", buffering=0) as file:
                    try:
                        while file.write(bytes(1000)):
                            pass
                    except OSError:
                        pass
                threading.Timer(2.5, filler.unlink).start()
            return answer

        fleet.sites_by_node[100].fault = fill
        words = [*WORDS, *DEPLOY, f"experiment.output_dir={tmp_path / 'disk' / 'outputs'}"]
        folder = run_words(fleet, words, log=listed_log(lines))
        assert model(folder).equal(simulated_model(WORDS, SITES, {}))
        check_ledger(events(folder), 4)
    finally:
        unmount()
    assert [line["level"] for line in lines if line["event"] == "disk_full"] == ["error"]


def failing_writes(monkeypatch: pytest.MonkeyPatch, module: Any, number: int, times: int, name: str) -> None:
    """Writes of files with `name` in their path fail this number of times."""
    write, left = module.write_atomically, [times]

    def failing(path: Path, raw: bytes) -> None:
        if name in str(path) and left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number), str(path))
        write(path, raw)

    monkeypatch.setattr(module, "write_atomically", failing)


DISPFL = ("algorithm=dispfl", "training.comm_round=2")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_is_waited_for_with_peers_models_too(
    number: int, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "DISK_SECONDS", 0.01)
    losses = []
    for times in (0, 3):
        lines: list[dict[str, Any]] = []
        failing_writes(monkeypatch, published, number, times, "published")
        fleet = fleet_of(tmp_path / str(times))
        folder = run_words(fleet, words_in(tmp_path, *DISPFL), log=listed_log(lines))
        losses.append([e["client_loss_mean"] for e in events(folder) if e["event"] == "round"])
        assert len([line for line in lines if line["event"] == "disk_full"]) == bool(times)
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("module", "name"), [(published, "published"), (driver, "broadcasts")])
def test_a_file_that_may_not_be_written_ends_the_run_in_one_line(
    module: Any, name: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_writes(monkeypatch, module, errno.EACCES, 1, name)
    words = words_in(tmp_path, *(DISPFL if module is published else ()))
    lines: list[dict[str, Any]] = []
    with pytest.raises(DeployError, match=rf"{name}/.*: Permission denied; the last checkpoint is kept"):
        run_words(fleet_of(tmp_path), words, log=listed_log(lines))
    assert [line["event"] for line in lines if line["level"] == "error"] == ["run_stopped"]
    (record,) = load_records(home)
    assert record.status == "failed"
    assert record.reason.endswith("Permission denied; the last checkpoint is kept")


def test_prometheus_can_scrape_a_run(tmp_path: Path, home: Path) -> None:
    fleet, found = fleet_of(tmp_path), list[str]()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    send = fleet.send

    def scraping(outgoing: Any, deadline_seconds: float) -> Any:
        if any(isinstance(w := message_bytes.unpack(m), messages.Work) and w.round == 4 for _, m in outgoing):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                found.append(answer.read().decode())
        return send(outgoing, deadline_seconds)

    fleet.send = scraping  # type: ignore[method-assign]
    folder = run_words(fleet, words_in(tmp_path, f"deploy.metrics_port={port}"), log=listed_log([]))
    (run,) = load_records(home)
    rounds = [e for e in events(folder) if e["event"] == "round"][:3]
    values = {
        k: float(v) for k, v in (line.rsplit(" ", 1) for line in found[0].splitlines() if line[:1] != "#")
    }
    label = f'{{phase="train",run="{run.run}"}}'
    assert values[f"ssfl_exchanges_total{label}"] == 3
    assert values[f"ssfl_downlink_bytes_total{label}"] == sum(e["downlink_bytes"] for e in rounds)
    assert values[f'ssfl_live_sites{{run="{run.run}"}}'] == SITES
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)


def test_rows_are_held_out_in_simulations_only(tmp_path: Path, home: Path) -> None:
    with pytest.raises(DeployError, match=r"dataset\.validation_portion=0\.2: must be 0: only simulations"):
        run_words(
            fleet_of(tmp_path), words_in(tmp_path, "dataset.validation_portion=0.2"), log=listed_log([])
        )


def test_a_run_that_the_sites_refuse_ends_with_their_reason(tmp_path: Path, home: Path) -> None:
    words = words_in(tmp_path, "model.name=somebodys.package:Net", "deploy.server_data=false")
    with pytest.raises(QuorumError, match=r"too many refuse: .*client 0\): model\.name=somebodys"):
        run_words(fleet_of(tmp_path), words, log=listed_log([]))
    (record,) = load_records(home)
    assert record.status == "failed"
    assert not (tmp_path / "outputs").exists()


def test_a_known_sets_constants_are_for_runs_that_name_it() -> None:
    config = load_config([])
    assert server_data(config, DeploySettings(), named=True).scaling is not None
    assert server_data(config, DeploySettings(), named=False).scaling is None
