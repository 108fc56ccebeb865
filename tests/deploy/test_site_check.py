"""`ssfl deploy site --check`: what a site's data looks like, before it has a folder or a connection."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from ssfl.cli import main


def test_the_data_is_read_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.npz"
    names = np.array(["healthy", "ill"])
    rows = np.zeros((10, 8), np.float32)
    np.savez(path, train_x=rows, train_y=np.arange(10) % 2, class_names=names)
    assert main(["deploy", "site", "--data", str(path), "--state", "new", "--check"]) == 0
    assert "8 examples, 2 to test on, each [8]; 2 classes: healthy, ill" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]
    assert main(["deploy", "site", "--data", str(tmp_path / "none.npz"), "--check"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["site", "--data", "a.npz", "--threads", "0"], "--threads: 0: must be a whole number from 1"),
        (["site", "--data", "a.npz", "--max-message-mb", "0"], "must be a whole number from 1"),
        (["site", "--data", "a.npz", "--give-up-seconds", "-1"], "-1: must be a number of at least 0"),
        (["server", "--port", "70000"], "70000: must be a whole number from 0 to 65535"),
        (["server", "--restarts", "-2"], "-2: must be a whole number from 0"),
        (["local", "--seconds", "nan"], "nan: must be a number of at least 0"),
    ],
)
def test_a_number_out_of_range_is_refused_before_anything_starts(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["deploy", *words])
    assert reason in capsys.readouterr().err
