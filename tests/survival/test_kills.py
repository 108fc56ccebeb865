"""kill -9 at any time, then `ssfl resume`: the results have the bytes of an uninterrupted run."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.support.run_processes import (
    ROUNDS,
    WORDS,
    check_same_end,
    count_events,
    ended,
    folders,
    killed,
    killed_at_file,
    listens,
    only,
    resumed,
    rows,
    start,
    start_run,
    wait_until,
)

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
DEATH = -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never stopped."""
    root = tmp_path_factory.mktemp("whole")
    code, out, err = ended(start_run(root))
    assert (code, err) == (0, "")
    assert "finished, 4 rounds" in out
    folder = only(root)
    assert [r["round"] for r in rows(folder) if r["event"] == "round"] == list(range(1, ROUNDS + 1))
    return folder


@pytest.mark.parametrize("seed", [1])
def test_killed_again_and_again_at_random_file_operations(seed: int, whole: Path, tmp_path: Path) -> None:
    """There are about forty: creation of the folder, rows, checkpoint files and their renames, the export."""
    draw = random.Random(seed)
    code = killed_at_file(
        tmp_path, draw.randint(1, 12), "run", *WORDS, f"experiment.output_dir={tmp_path}/outputs"
    )
    deaths = 0
    while code == DEATH:
        deaths += 1
        if folders(tmp_path):
            folder = only(tmp_path)
            code = killed_at_file(tmp_path, draw.randint(8, 30), "resume", folder)
        else:  # it died before its folder existed; an incomplete folder is not a run folder
            words = ("run", *WORDS, f"experiment.output_dir={tmp_path}/outputs")
            code = killed_at_file(tmp_path, draw.randint(8, 30), *words)
    assert code == 0
    assert deaths >= 2
    check_same_end(only(tmp_path), whole)


def test_killed_while_scoring_while_training_and_while_exporting(whole: Path, tmp_path: Path) -> None:
    draw = random.Random(3)
    process = start_run(tmp_path)
    wait_until(lambda: count_events(tmp_path, "run_started"), process)
    time.sleep(draw.uniform(0, 0.1))
    assert killed(process)[0] == DEATH
    folder = only(tmp_path)
    process = start(tmp_path, "resume", folder)
    wait_until(lambda: count_events(tmp_path, "round") >= 2, process)
    time.sleep(draw.uniform(0, 0.05))
    assert killed(process)[0] == DEATH
    assert not (folder / "model.safetensors").exists()
    process = start(tmp_path, "resume", folder)
    wait_until(lambda: count_events(tmp_path, "run_finished"), process)
    assert killed(process)[0] == DEATH
    assert resumed(tmp_path, folder)[0] == 0
    check_same_end(folder, whole)


def test_killed_while_it_loads_leaves_nothing_that_looks_like_a_run(tmp_path: Path) -> None:
    process = start_run(tmp_path)
    wait_until(lambda: listens(process), process)
    time.sleep(random.Random(4).uniform(0, 0.5))
    assert killed(process)[0] == DEATH
    assert all(rows(f) == [] and (f / "config.yaml").exists() for f in folders(tmp_path))


def test_a_finished_run_says_so(whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    code, out, err = resumed(whole.parents[2], whole)
    assert (code, err) == (0, "")
    assert out.startswith(f"{whole} is finished; nothing to resume (to train longer: ssfl resume {whole} ")
    assert out.count("\n") == 1
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_personal_models_survive_too(tmp_path: Path) -> None:
    words = ("algorithm=dispfl", "algorithm.params.fair_budget=true", "training.comm_round=3")
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        root.mkdir()
    assert ended(start_run(one, *words))[0] == 0
    process = start_run(two, *words)
    wait_until(lambda: count_events(two, "round") >= 1, process)
    assert killed(process)[0] == DEATH
    assert resumed(two, only(two))[0] == 0
    check_same_end(only(two), only(one))


@pytest.mark.parametrize("memory", [1000, 0])
def test_what_codecs_remember_survives(memory: int, tmp_path: Path) -> None:
    """Residuals and held values of the clients, in memory or in files, and the server's record of clients' values."""
    words = (
        "communication.profile=small",
        "communication.error_feedback=true",
        "communication.downlink_versions=3",
        "communication.measure=exact",
        f"engine.state_memory_mb={memory}",
    )
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        root.mkdir()
    assert ended(start_run(one, *words))[0] == 0
    process = start_run(two, *words)
    wait_until(lambda: count_events(two, "round") >= 2, process)
    assert killed(process)[0] == DEATH
    assert resumed(two, only(two))[0] == 0
    check_same_end(only(two), only(one))


def test_personal_models_that_lie_in_files_are_exported_after_a_death_that_left_nothing_else_to_do(
    tmp_path: Path,
) -> None:
    words = ("algorithm=dispfl", "engine.state_memory_mb=0", "checkpoint.every_rounds=1")
    assert ended(start_run(tmp_path, *words))[0] == 0
    models = only(tmp_path) / "client_models.safetensors"
    assert list((only(tmp_path) / "clients").iterdir())
    wanted = models.read_bytes()
    models.unlink()
    code, _, err = resumed(tmp_path, only(tmp_path))
    assert (code, err) == (0, "")
    assert models.read_bytes() == wanted


def test_two_runs_of_one_second_have_two_folders(tmp_path: Path) -> None:
    pair = [start_run(tmp_path, "training.comm_round=1", f"experiment.seed={s}") for s in (1, 2)]
    assert [ended(p)[0] for p in pair] == [0, 0]
    assert len(folders(tmp_path)) == 2
