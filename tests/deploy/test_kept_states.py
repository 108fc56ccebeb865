"""A site's memory on disk: back after a restart, a step back for a server that went back, harmless when damaged."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
import torch

from ssfl.deploy.site.kept_states import KEPT, KEPT_DAYS, KeptStates, Memory, forget_old_runs, is_run_name


def memory(exchange: int, value: float) -> Memory:
    return Memory(exchange, {"mask": torch.full((3,), value)}, {"ab": 1})


def value(found: Memory) -> float:
    return float(found.state["mask"][0])


def test_what_was_remembered_comes_back_in_a_new_process(tmp_path: Path) -> None:
    first = KeptStates(tmp_path, "run")
    for exchange in range(1, 9):
        assert first.put(memory(exchange, exchange)) is None
    again = KeptStates(tmp_path, "run")
    assert value(again.before(99)) == 8
    assert value(again.before(8)) == 7
    assert again.before(99).holds == {"ab": 1}
    assert len(list((tmp_path / "run").glob("*.safetensors"))) == KEPT


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_states_as_of_the_servers_checkpoints_are_kept(on_disk: bool, tmp_path: Path) -> None:
    """The client did not take part in exchange 10, after which the server saved a checkpoint."""
    states = KeptStates(tmp_path if on_disk else None, "run")
    for exchange in (n for n in range(1, 21) if n != 10):
        states.put(memory(exchange, exchange), tuple(c for c in (0, 5, 10) if c < exchange)[-2:])
    again = KeptStates(tmp_path, "run") if on_disk else states
    assert [value(again.before(n)) for n in (6, 11, 17, 18, 21)] == [5, 9, 9, 17, 20]
    assert again.before(5) == Memory()
    again.put(memory(21, 21), (10, 20))
    assert again.before(9) == Memory()
    assert value(again.before(11)) == 9


def test_an_exchange_done_again_forgets_what_followed(tmp_path: Path) -> None:
    states = KeptStates(tmp_path, "run")
    for exchange in range(1, 5):
        states.put(memory(exchange, exchange))
    states.put(memory(3, 30))
    for other in (states, KeptStates(tmp_path, "run")):
        assert value(other.before(99)) == 30
        assert value(other.before(3)) == 2


def test_a_file_that_a_crash_cut_short_is_passed_over(tmp_path: Path) -> None:
    states = KeptStates(tmp_path, "run")
    states.put(memory(1, 1))
    states.put(memory(2, 2))
    newest = max((tmp_path / "run").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:40])
    assert value(KeptStates(tmp_path, "run").before(99)) == 1


def test_state_without_change_writes_nothing(tmp_path: Path) -> None:
    states = KeptStates(tmp_path, "run")
    first = memory(1, 1)
    states.put(first)
    before = sorted((tmp_path / "run").iterdir())
    states.put(Memory(2, first.state, first.holds))
    assert sorted((tmp_path / "run").iterdir()) == before
    assert value(KeptStates(tmp_path, "run").before(3)) == 1


def test_forgetting_removes_the_folder(tmp_path: Path) -> None:
    states = KeptStates(tmp_path, "run")
    states.put(memory(1, 1))
    states.forget()
    assert not (tmp_path / "run").exists()
    assert states.before(9) == Memory()


def test_forgetting_leaves_files_that_are_not_states(tmp_path: Path) -> None:
    """The name of the run comes from the server, and the operator may keep other folders there."""
    for name in ("models", "data", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "models" / "mine.safetensors").write_bytes(b"x")
    (tmp_path / "data" / "scan.png").write_bytes(b"x")
    for name in ("models", "data", "empty"):
        KeptStates(tmp_path, name).forget()
    assert (tmp_path / "models" / "mine.safetensors").exists()
    assert (tmp_path / "data" / "scan.png").exists()
    assert (tmp_path / "empty").exists()


def aged(folder: Path, days: float) -> None:
    then = time.time() - days * 86_400
    os.utime(folder, (then, then))


def test_states_of_a_run_that_is_not_resumed_are_deleted_after_a_month(tmp_path: Path) -> None:
    for run, days in (("old", KEPT_DAYS + 1), ("recent", KEPT_DAYS - 1), ("joined", KEPT_DAYS + 1)):
        KeptStates(tmp_path, run).put(memory(1, 1))
        aged(tmp_path / run, days)
    other = tmp_path / "data"  # of the operator
    other.mkdir()
    (other / "a.npz").write_bytes(b"x")
    (tmp_path / "old.model.safetensors").write_bytes(b"x")
    aged(other, 1000)
    (tmp_path / "lost+found").mkdir()  # the state folder may be a disk
    aged(tmp_path / "lost+found", 1000)
    assert forget_old_runs(tmp_path, "joined", time.time()) == ("old",)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["data", "joined", "lost+found", "old.model.safetensors", "recent"]
    assert forget_old_runs(None, "", time.time()) == forget_old_runs(tmp_path / "none", "", 0.0) == ()


def test_a_run_whose_state_does_not_change_is_in_use(tmp_path: Path) -> None:
    """SSFL's mask is written once, for a run that may take longer than the states are kept."""
    states, first = KeptStates(tmp_path, "run"), memory(1, 1)
    states.put(first)
    aged(tmp_path / "run", KEPT_DAYS + 1)
    states.put(Memory(2, first.state, first.holds))
    assert forget_old_runs(tmp_path, "", time.time()) == ()


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".hidden", "a" * 200, "a\0b"])
def test_an_invalid_run_name_is_refused(name: str, tmp_path: Path) -> None:
    assert not is_run_name(name)
    with pytest.raises(ValueError, match="not a valid run name"):
        KeptStates(tmp_path, name)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_keeps_the_state_in_memory_and_says_so(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"mount is not allowed here: {mounted.stderr.decode()}")
    try:
        states = KeptStates(disk, "run")
        large = Memory(1, {"mask": torch.zeros(100_000)}, {})
        fault = states.put(large)
        assert fault is not None
        assert "No space left" in fault
        assert states.before(2) is large
        assert not list((disk / "run").glob(".*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
