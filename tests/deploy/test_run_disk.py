"""A run on a disk that is full or not writable."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssfl.deploy.errors import DeployError
from ssfl.deploy.protocol import message_bytes, messages
from ssfl.deploy.server import driver, published
from ssfl.deploy.server.run import run_words
from ssfl.deploy.server.run_record import load_records
from ssfl.deploy.transport.port import Message
from tests.deploy.fake_fleet import listed_log
from tests.deploy.oracle import check_ledger, simulated_model
from tests.deploy.server_runs import DEPLOY, SITES, WORDS, events, fleet_of, model, words_in


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
