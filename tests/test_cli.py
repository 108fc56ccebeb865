"""Verbs, exit codes, and how fast and how quietly bad input is answered. The runs themselves are stand-ins."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from ssfl import __version__, cli
from ssfl.config import Config

ROOT = Path(__file__).resolve().parent.parent


class _PartitionError(ValueError):
    """An input error of another room, for the purposes of `is_input_error`."""


_PartitionError.__module__ = "ssfl.data.partition"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """`ssfl.assemble` replaced by a recorder, so that no test here loads torch or trains."""
    seen: list[tuple[object, ...]] = []
    fake = types.ModuleType("ssfl.assemble")

    def record(name: str) -> object:
        def call(*words: object) -> int:
            seen.append((name, *words))
            return 0

        return call

    for name in ("run", "resume", "show_partition"):
        setattr(fake, name, record(name))
    monkeypatch.setitem(sys.modules, "ssfl.assemble", fake)
    monkeypatch.setattr("ssfl.assemble", fake, raising=False)
    return seen


def _fail(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(config: Config) -> int:
        raise error

    monkeypatch.setattr(sys.modules["ssfl.assemble"], "run", run)


def test_run_hands_over_the_configuration(calls: list[tuple[object, ...]]) -> None:
    assert cli.main(["run", "preset=digits", "training.comm_round=3"]) == 0
    ((verb, config),) = calls
    assert verb == "run"
    assert isinstance(config, Config)
    assert (config.dataset.name, config.training.comm_round) == ("digits", 3)


def test_resume_and_partition(calls: list[tuple[object, ...]], tmp_path: Path) -> None:
    assert cli.main(["resume", str(tmp_path), "--console", "json"]) == 0
    assert cli.main(["partition", "preset=digits", "--out", "table.png"]) == 0
    assert calls[0] == ("resume", tmp_path, "json")
    assert calls[1][0] == "show_partition"
    assert calls[1][2] == Path("table.png")


def test_warnings_are_lines_on_stderr(
    calls: list[tuple[object, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "preset=digits", "model.cs=v1"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("ssfl: warning: model.cs is a leftover")
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize(
    "words",
    [
        ["run", "model.dense_ratio=2"],
        ["run", "just-a-word"],
        ["partition", "preset=nope"],
        ["sweep", "preset=digits"],
        ["sweep", "--resume", "no/such/folder"],
        ["sweep", "--resume", ".", "model.dense_ratio=0.1,0.2"],
        ["resume", "no/such/folder"],
        ["report", "no/such/folder"],
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_and_exit_2(
    words: list[str],
    calls: list[tuple[object, ...]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith("ssfl: ")
    assert said.err.count("\n") == 1
    assert calls == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rank", ["0", "1", "7"])
def test_of_several_ranks_the_first_says_what_is_wrong(
    rank: str,
    calls: list[tuple[object, ...]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli, "FIRST_RANK_SECONDS", 0.0)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", rank)
    try:
        code = cli.main(["run", "model.dense_ratio=2"])
    except SystemExit as end:
        code = end.code  # type: ignore[assignment]
    assert code == 2
    assert capsys.readouterr().err.count("\n") == (rank == "0")
    assert cli.main(["run", "preset=digits", "model.cs=v1"]) == 0  # a warning
    assert capsys.readouterr().err.count("\n") == (rank == "0")


def test_what_the_first_rank_refuses_later_is_left_to_it_too(
    calls: list[tuple[object, ...]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = _PartitionError("training.client_num_in_total=100000: too many")
    refused.first_rank_says_it = True  # type: ignore[attr-defined]
    _fail(monkeypatch, refused)
    monkeypatch.setattr(cli, "FIRST_RANK_SECONDS", 0.0)
    assert cli.main(["run", "preset=digits"]) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", [[], ["training.frac=0.01"], ["training.client_num_per_round=2"]])
def test_a_partition_of_few_clients_needs_no_cohort(
    words: list[str], calls: list[tuple[object, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["partition", "dataset.name=digits", "training.client_num_in_total=3", *words]) == 0
    ((_, config, _),) = calls
    assert isinstance(config, Config)
    assert config.training.client_num_in_total == 3
    assert capsys.readouterr().err == ""


def test_errors_of_other_rooms(
    calls: list[tuple[object, ...]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail(monkeypatch, _PartitionError("training.client_num_in_total=100000:\n too many"))
    assert cli.main(["run", "preset=digits"]) == 2
    assert capsys.readouterr().err == "ssfl: training.client_num_in_total=100000: too many\n"
    assert cli.main(["run", "preset=digits", "experiment.debug_mode=true"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_not_called_bad_input(
    calls: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail(monkeypatch, ValueError("our own mistake"))
    with pytest.raises(ValueError, match="our own mistake"):
        cli.main(["run", "preset=digits"])


def test_ctrl_c_is_130(calls: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    _fail(monkeypatch, KeyboardInterrupt())
    assert cli.main(["run", "preset=digits"]) == 130


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words, text in (
        (["--version"], f"ssfl {__version__}"),
        (["--help"], "examples:"),
        (["run", "-h"], "KEY="),
    ):
        with pytest.raises(SystemExit) as left:
            cli.main(words)
        assert left.value.code == 0
        assert text in capsys.readouterr().out
    assert cli.main([]) == 2


def test_main_py_is_ssfl_run(tmp_path: Path) -> None:
    # -X importtime would tell too; asking the process itself is simpler: nothing heavy may be loaded by then.
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), "preset=digits", "model.dense_ratio=1.5"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ssfl: model.dense_ratio=1.5: must be above 0 and at most 1\n"
    assert list(tmp_path.iterdir()) == []
