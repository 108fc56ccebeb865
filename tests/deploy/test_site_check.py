"""`ssfl deploy site`: its data is checked without a folder or a connection; bad arguments and files are one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from ssfl.cli import main
from ssfl.deploy.federation.folders import make_federation


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
        (["site", "--data", "a.npz", "--client", "-7"], "--client: -7: must be a whole number from -1"),
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


@pytest.mark.parametrize(
    ("labels", "words", "reason"),
    [
        (np.zeros(0, int), [], "a.npz: has no examples; a site needs at least one training row"),
        (np.array(3), [], "a.npz: train_y must be whole numbers [N] from 0"),
        (np.array([0, 2]), ["--class-names", "cat,dog"], "a.npz"),
    ],
)
def test_labels_that_cannot_be_used_are_one_line(
    labels: np.ndarray, words: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", train_x=np.zeros((labels.size, 4), np.float32), train_y=labels)
    assert main(["deploy", "site", "--data", str(tmp_path / "a.npz"), "--check", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


def test_class_names_that_lack_a_class_of_the_file_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = np.array(["healthy", "ill"])
    np.savez(tmp_path / "a.npz", train_x=np.zeros((2, 4), np.float32), train_y=[0, 1], class_names=names)
    words = ["deploy", "site", "--data", str(tmp_path / "a.npz"), "--check", "--class-names", "healthy,dead"]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ssfl: --class-names healthy,dead: a: class 'ill' is not among the classes")


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        (
            "ca.crt",
            b"garbage",
            "ca.crt: is not a certificate in PEM format; it must be the ca.crt of the server",
        ),
        ("ca.crt", b"\xff\xfe", "ca.crt: is not a certificate in PEM format"),
        ("ca.crt", b"", "ca.crt: is not a certificate in PEM format"),
        ("site.key", b"garbage", "site.key: is not a private key in OpenSSH format; `ssfl deploy init` or"),
        ("site.json", b"{", "site.json: cannot be read ("),
        ("site.json", b"{}", "site.json: cannot be read (superlink is missing); give --folder"),
    ],
)
def test_a_damaged_file_of_a_sites_folder_is_named_in_one_line(
    name: str, raw: bytes, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", train_x=np.zeros((4, 3), np.float32), train_y=np.arange(4) % 2)
    make_federation(tmp_path / "f", ["a"], "127.0.0.1:1")
    folder = tmp_path / "f" / "sites" / "a"
    (folder / name).write_bytes(raw)
    words = ["deploy", "site", "--folder", str(folder), "--data", str(tmp_path / "a.npz")]
    assert main([*words, "--give-up-seconds", "0.1"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"ssfl: {folder}/{reason}")


@pytest.mark.parametrize("content", [b"garbage", b"", None])
def test_a_certificate_of_a_remote_server_that_is_none_is_one_line(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ca.crt"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    words = ["deploy", "run", "--superlink", "127.0.0.1:1", "--root-certificates", str(path), "preset=digits"]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ssfl: {path}: ")
    assert line.endswith("it must be the ca.crt of the server, from its operator")


def test_a_state_folder_that_is_a_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_federation(tmp_path / "f", ["a"], "127.0.0.1:1")
    (tmp_path / "state").write_text("")
    words = ["--folder", str(tmp_path / "f" / "sites" / "a"), "--state", str(tmp_path / "state")]
    assert main(["deploy", "site", "--data", "a.npz", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("state: a file exists where a folder is needed; give another folder")
