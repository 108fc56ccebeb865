"""Resuming a run: an edited configuration is refused with the key's name, and a run can be extended."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ssfl import assemble, run_folder
from ssfl.assemble import lifecycle, running
from ssfl.config import ConfigError
from ssfl.engine.executors.distributed.link import Link
from tests.support.assembled import config
from tests.support.ranks import on_ranks


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace reports by one file, because drawing takes longer than these runs."""

    def write(_: object, out: Path) -> None:
        out.mkdir(exist_ok=True)
        (out / "comparison.md").write_text("")

    monkeypatch.setattr(running, "write_report", write)


STOP = "checkpoint.stop_after_seconds=0.0001"


def run(root: Path, *words: str) -> Path:
    """The folder of a run under `root`."""
    assert assemble.run(config(f"experiment.output_dir={root}", *words)) == 0
    (folder,) = (root / "digits").iterdir()
    return folder


def rows(folder: Path, event: str) -> list[Mapping[str, Any]]:
    every = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in every if row["event"] == event]


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The results of all exchanges and the totals, without times."""
    every = [row for event in ("round", "phase", "run_finished") for row in rows(folder, event)]
    return [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in every]


def edit(folder: Path, before: str, after: str) -> None:
    path = folder / "config.yaml"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))


@pytest.mark.parametrize("method", ["ssfl", "fedavg_ft"])
def test_an_extended_run_ends_as_one_that_was_begun_with_as_many_rounds(method: str, tmp_path: Path) -> None:
    word = f"algorithm={method}"
    whole = run(tmp_path / "whole", word, "training.comm_round=4")
    folder = run(tmp_path / "short", word, "training.comm_round=2", "checkpoint.every_rounds=0")
    before = (folder / "model.safetensors").read_bytes()
    (folder / "model_exported.pt2").write_bytes(b"of two rounds")
    assert assemble.resume(folder, words=["training.comm_round=4"]) == 0
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (folder / "model.2-rounds.safetensors").read_bytes() == before
    assert (folder / "model_exported.2-rounds.pt2").read_bytes() == b"of two rounds"
    assert not (folder / "model_exported.pt2").exists()
    assert [row["round"] for row in rows(folder, "round")] == [1, 2, 3, 4]
    assert rows(folder, "extended") == [{"event": "extended", "round": 2, "rounds_before": 2, "rounds": 4}]
    (ended,) = rows(folder, "run_finished")
    dense = rows(folder, "run_started")[0]["dense_bytes"]
    assert (ended["rounds"], ended["fedavg_uplink_bytes"]) == (4, dense * 2 * 4)  # 2 clients a round
    assert "comm_round: 4" in (folder / "config.yaml").read_text()
    assert numbers(folder) == numbers(whole)  # also the bytes, and no trace of the fine-tuning after round 2


def test_a_stopped_run_is_extended_too_and_words_may_repeat_what_is_so(tmp_path: Path) -> None:
    folder = run(tmp_path, "algorithm=fedavg", "training.comm_round=3", STOP)
    edit(folder, "stop_after_seconds: 0.0001", "stop_after_seconds: 0.0")  # changes no result
    assert assemble.resume(folder, words=["training.comm_round=4"]) == 0
    assert [row["round"] for row in rows(folder, "round")] == [1, 2, 3, 4]
    assert rows(folder, "run_finished")[0]["rounds"] == 4
    before = (folder / "metrics.jsonl").read_bytes()
    assert assemble.resume(folder, words=["training.comm_round=4"]) == 0
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("method", ["ssfl", "sparsyfed"])
def test_a_network_with_running_statistics_is_resumed(method: str, tmp_path: Path) -> None:
    """The mask has a bit for every coordinate, statistics included."""
    words = (f"algorithm={method}", "model.name=cnn", "model.norm=batch", "training.comm_round=2")
    whole = run(tmp_path / "whole", *words)
    folder = run(tmp_path / "stopped", *words, STOP)
    while not (folder / "model.safetensors").exists():
        assert assemble.resume(folder) == 0  # stops after the next exchange
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_what_was_edited_is_refused_by_name(tmp_path: Path) -> None:
    folder = run(tmp_path, "algorithm=fedavg", "training.comm_round=3", STOP)
    text = (folder / "config.yaml").read_text()
    changes = {
        "optimizer.lr=0.7 (was 0.1)": ("  lr: 0.1", "  lr: 0.7"),
        "experiment.seed=9 (was 550)": ("seed: 550", "seed: 9"),
        "model.name=mlp (was": ("name: cnn", "name: mlp"),
        "training.client_num_in_total=5 (was 4)": ("client_num_in_total: 4", "client_num_in_total: 5"),
    }
    for expected, (before, after) in changes.items():
        if before not in text:
            before = f"name: {_model(text)}"
        edit(folder, before, after)
        with pytest.raises(ConfigError) as caught:
            assemble.resume(folder)
        assert expected in str(caught.value)
        assert str(folder / "config.yaml") in str(caught.value)
        (folder / "config.yaml").write_text(text)
    edit(folder, "comm_round: 3", "comm_round: 5")
    with pytest.raises(ConfigError, match=rf"ssfl resume {folder} training.comm_round=5"):
        assemble.resume(folder)
    assert len(rows(folder, "round")) == 1  # no round was started
    edit(folder, "every_seconds: 120.0", "every_seconds: 3.0")
    edit(folder, "stop_after_seconds: 0.0001", "stop_after_seconds: 0.0")
    assert (
        assemble.resume(folder, words=["training.comm_round=5"]) == 0
    )  # the file's number agrees with the words
    assert rows(folder, "run_finished")[0]["rounds"] == 5


def _model(text: str) -> str:
    """The network's name in a configuration."""
    section = text.partition("\nmodel:\n")[2]
    return section.partition("name: ")[2].partition("\n")[0]


@pytest.mark.parametrize("content", [b"", b"{{", b"\xff", b"[1]", b"model: {name: 3", b"no_section: {a: 1}"])
def test_a_configuration_that_is_none_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.yaml: "):
        assemble.resume(tmp_path)


@pytest.mark.parametrize(
    "word",
    [
        "optimizer.lr=0.2",
        "tracking.console=plain",
        "rounds",
        "training.comm_round=0",
        "training.comm_round=x",
    ],
)
def test_other_words_are_refused_by_name(word: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match=word.partition("=")[0]):
        assemble.resume(tmp_path, words=[word])


def test_a_death_between_the_two_files_of_an_extension_leaves_a_way_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint already has 3 rounds, config.yaml still 2."""
    folder = run(tmp_path, "algorithm=fedavg", "training.comm_round=2")

    def die(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(running, "_keep_config", die)
        with pytest.raises(MemoryError):
            assemble.resume(folder, words=["training.comm_round=3"])
    with pytest.raises(ConfigError, match=r"training.comm_round=2 \(was 3\).*training.comm_round=3"):
        assemble.resume(folder)
    with pytest.raises(ConfigError, match="not shortened"):
        assemble.resume(folder, words=["training.comm_round=2"])
    assert assemble.resume(folder, words=["training.comm_round=3"]) == 0
    assert [row["round"] for row in rows(folder, "round")] == [1, 2, 3]
    assert len(rows(folder, "extended")) == 1


def test_a_report_that_was_not_written_is_made_by_the_next_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28), str(tmp_path / "picture.png"))

    with monkeypatch.context() as patched:
        patched.setattr(running, "write_report", full)
        assert assemble.run(config(f"experiment.output_dir={tmp_path}", "algorithm=fedavg")) == 1
    (folder,) = (tmp_path / "digits").iterdir()
    printed = capsys.readouterr()
    assert f"{tmp_path / 'picture.png'}: No space left on device" in printed.err
    assert f"ssfl resume {folder}" in printed.err
    assert "finished" in printed.out  # the numbers are printed anyway
    assert run_folder.is_finished(folder)
    assert assemble.resume(folder) == 0
    assert (folder / "report" / "comparison.md").is_file()
    capsys.readouterr()
    assert assemble.resume(folder) == 0
    assert "nothing to resume" in capsys.readouterr().out


def test_a_half_written_model_is_no_end(tmp_path: Path) -> None:
    folder = run(tmp_path, "algorithm=fedavg", "training.comm_round=2")
    model = folder / "model.safetensors"
    whole = model.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:-1], b"\0" * len(whole), whole + b"\0"):
        model.write_bytes(content)
        assert not run_folder.is_finished(folder)
    assert assemble.resume(folder) == 0
    assert model.read_bytes() == whole


def test_ranks_without_the_runs_files_end_with_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another host may have nothing but config.yaml."""
    folder = run(tmp_path, "algorithm=fedavg", "training.comm_round=1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text((folder / "config.yaml").read_text())
    links: dict[int, Link] = {}

    @contextlib.contextmanager
    def joined(seconds: float) -> Iterator[Link]:
        yield links[threading.get_ident()]

    def work(link: Link) -> int:
        links[threading.get_ident()] = link
        return assemble.resume((folder, tmp_path / "other")[link.rank])

    monkeypatch.setattr(lifecycle, "joined", joined)
    assert on_ranks(2, work) == [0, 0]
    assert capsys.readouterr().out.count("is finished; nothing to resume") == 1


def test_a_folder_of_a_deployment_is_sent_to_its_own_verb(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "deployment.json").write_text("{}")
    with pytest.raises(ConfigError, match="ssfl deploy run --resume"):
        assemble.resume(tmp_path)


@pytest.mark.parametrize("broken", ["executor_of", "ClientStore", "loop_of"])
def test_observers_are_closed_once_whatever_raises(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    class Listener:
        def record(self, event: Mapping[str, Any]) -> None: ...

        def close(self) -> None:
            closed.append("closed")

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(lifecycle, "trackers_of", lambda *_: (Listener(),))
    monkeypatch.setattr(lifecycle, broken, fail)
    with pytest.raises(RuntimeError, match="broken"):
        assemble.run(config(f"experiment.output_dir={tmp_path}", "algorithm=fedavg"))
    assert closed == ["closed"]


def test_observers_are_closed_once_by_a_run_that_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    class Listener:
        def record(self, event: Mapping[str, Any]) -> None:
            if event["event"] == "round":
                raise KeyboardInterrupt

        def close(self) -> None:
            closed.append("closed")

    monkeypatch.setattr(lifecycle, "trackers_of", lambda *_: (Listener(),))
    assert assemble.run(config(f"experiment.output_dir={tmp_path}", "algorithm=fedavg")) == 130
    assert closed == ["closed"]


def test_a_damaged_checkpoint_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path, "algorithm=fedavg", "training.comm_round=3", "checkpoint.every_rounds=1")
    (folder / "model.safetensors").unlink()
    *_, damaged = sorted((folder / "checkpoints").glob("*.json"))
    damaged.write_text("{")
    capsys.readouterr()
    assert assemble.resume(folder) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert str(damaged) in line
    assert [row["round"] for row in rows(folder, "round")] == [1, 2, 3]
    assert str(damaged) in rows(folder, "warning")[0]["message"]


def test_a_checkpoint_of_an_earlier_version_knows_its_rounds_only(tmp_path: Path) -> None:
    """It contains no configuration; another number of rounds in config.yaml is refused, but arguments may set it."""
    folder = run(tmp_path, "algorithm=fedavg", "training.comm_round=3", STOP)
    for path in (folder / "checkpoints").glob("*.json"):
        head = json.loads(path.read_text())
        del head["extra"]["config"]
        content = {"progress": head["progress"], "extra": head["extra"]}
        raw = path.with_suffix(".safetensors").read_bytes()
        head["digest"] = hashlib.blake2b(json.dumps(content).encode() + raw, digest_size=16).hexdigest()
        path.write_text(json.dumps(head))
    edit(folder, "stop_after_seconds: 0.0001", "stop_after_seconds: 0.0")
    edit(folder, "comm_round: 3", "comm_round: 2")
    with pytest.raises(ConfigError, match=r"training\.comm_round=3"):
        assemble.resume(folder)
    assert assemble.resume(folder, words=["training.comm_round=4"]) == 0
    assert [row["round"] for row in rows(folder, "round")] == [1, 2, 3, 4]
