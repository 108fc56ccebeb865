"""Verbs, exit codes, and fast one-line errors for bad input. Runs are replaced by a recorder."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from ssfl import __version__, cli
from ssfl.cli_parser import build_parser, parse
from ssfl.config import Config
from ssfl.errors import UserError
from tests.support.paths import ROOT


class _PartitionError(UserError):
    """A user error of another package."""


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

    for name in ("run", "resume", "show_partition", "show_doctor"):
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
    assert calls[0] == ("resume", tmp_path, "json", [])
    assert calls[1][0] == "show_partition"
    assert calls[1][2] == Path("table.png")


def test_doctor_takes_a_run_or_none(calls: list[tuple[object, ...]]) -> None:
    assert cli.main(["doctor"]) == 0
    assert cli.main(["doctor", "--measure", "preset=digits"]) == 0
    assert calls[0] == ("show_doctor", None, False)
    assert isinstance(calls[1][1], Config)
    assert calls[1][2] is True


def test_warnings_are_lines_on_stderr(
    calls: list[tuple[object, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "preset=digits", "model.cs=v1"]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("ssfl: warning: model.cs has no effect")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize(
    "words",
    [
        ["run", "model.dense_ratio=2"],
        ["run", "just-a-word"],
        ["partition", "preset=nope"],
        ["sweep", "preset=digits"],
        ["sweep", "--resume", "no/such/folder"],
        ["sweep", "--resume", ".", "model.dense_ratio=0.1,0.2"],
        ["sweep", "--resume", ".", "--skip-finished", "."],
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
    printed = capsys.readouterr()
    assert printed.err.startswith("ssfl: ")
    assert printed.err.count("\n") == 1
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
    refused.reported_by_first_rank = True  # type: ignore[attr-defined]
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


def test_a_partition_refuses_an_impossible_share(capsys: pytest.CaptureFixture[str]) -> None:
    """It is not read, but a wrong value is a mistake."""
    assert cli.main(["partition", "dataset.name=digits", "training.frac=half"]) == 2
    assert "training.frac=half: must be" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    "words",
    [
        ["sweep", "preset=digits", "experiment.seed=1,2", "--jobs", "2"],
        ["sweep", "preset=digits", "--jobs", "2", "experiment.seed=1,2"],
        ["sweep", "--jobs", "2", "preset=digits", "experiment.seed=1,2"],
    ],
)
def test_settings_may_stand_before_and_after_options(words: list[str]) -> None:
    found = parse(build_parser(), words)
    assert found.words == ["preset=digits", "experiment.seed=1,2"]
    assert found.jobs == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--optimizer.lr=1"], "--optimizer.lr=1; settings are KEY=VALUE, without dashes"),
        (["run", "--nope"], "unrecognized arguments: --nope; see ssfl --help"),
        (["sweep", "a=1", "--jobs", "2", "b=2", "c"], "unrecognized arguments: b=2 c; see ssfl --help"),
        (["report", "outputs", "--nope=1"], "--nope=1; see ssfl --help"),
        (
            ["resume"],
            "the following arguments are required: folder; see ssfl resume --help",
        ),
        (
            ["sweep", "--jobs", "0"],
            "argument --jobs: 0: must be a whole number of at least 1; see ssfl sweep --help",
        ),
        (
            ["deploy", "local", "--sites", "x"],
            "argument --sites: invalid int value: 'x'; see ssfl deploy local --help",
        ),
    ],
)
def test_options_that_do_not_exist_are_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_metric_without_a_key_to_choose_starts_no_sweep(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssfl.sweep.sweep.start_sweep", lambda *words, **options: pytest.fail("started"))
    assert cli.main(["sweep", "optimizer.lr=0.1,0.2", "--by", "validation_accuracy"]) == 2
    assert "--by validation_accuracy: is the metric of --choose KEY" in capsys.readouterr().err


def test_keys_lists_the_settings_of_a_custom_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", "examples.fedprox:METHOD"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("algorithm.params.mu=0.01")
    assert "weight of the proximal term" in line


def test_keys_names_the_nearest_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", "lr"]) == 2
    assert "did you mean optimizer.lr?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"optimizer.lr=0.1\r\n\r\n# c\r\nmodel.dense_ratio=1,\r\n",
            "line 4: 'model.dense_ratio=1,': an item",
        ),
        (b"optimizer.lr=0.1\noptimizer.lr='0.1\n", "line 2: a quote has no partner"),
        (b"a\xff=1\n", "is not text in UTF-8"),
        (b"\n# nothing\n", "is empty"),
    ],
)
def test_a_line_of_a_sweep_file_is_named(
    content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines.txt").write_bytes(content)
    assert cli.main(["sweep", "--lines", str(tmp_path / "lines.txt"), "--into", str(tmp_path / "s")]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_a_sweep_file_may_come_from_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lines.txt").write_bytes(
        b"\xef\xbb\xbfoptimizer.lr=0.1,0.2\r\n# c\r\nmodel.dense_ratio=0.3\r\n"
    )
    taken: list[object] = []

    def start(words: list[str], lines: object, **rest: object) -> int:
        taken.append(lines)
        return 0

    monkeypatch.setattr("ssfl.sweep.sweep.start_sweep", start)
    assert cli.main(["sweep", "--lines", str(tmp_path / "lines.txt")]) == 0
    assert taken == [[["optimizer.lr=0.1,0.2"], ["model.dense_ratio=0.3"]]]


def test_packed_runs_are_read_like_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = ROOT / "experiments" / "codec_accuracy" / "digits" / "runs.json"
    assert cli.main(["table", str(packed)]) == 0
    assert "SSFL, density 0.1, profile=small" in capsys.readouterr().out
    assert cli.main(["report", str(packed), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "comparison.csv").is_file()
    stored = packed.read_text(encoding="utf-8")
    (tmp_path / "runs.json").write_text(stored.replace('"round": 30', '"round": "30"'), encoding="utf-8")
    assert cli.main(["table", str(tmp_path / "runs.json")]) == 2
    assert "round must be a whole number" in capsys.readouterr().err


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
    # Checks in the process that no large library is loaded (simpler than -X importtime).
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
