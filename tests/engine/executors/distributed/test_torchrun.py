"""Two torchrun processes on real data: one dies, the run is resumed, and the bits equal those of one process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssfl import assemble
from ssfl.config import load_config
from tests.support.paths import ROOT

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
ROUNDS = 20
WORDS = (
    "preset=digits",
    f"training.comm_round={ROUNDS}",
    "training.epochs=1",
    "training.client_num_per_round=3",  # unequal shares
    "training.frequency_of_the_test=5",
    "engine.executor=sequential",
    "engine.memory_format=contiguous",
    "engine.rank_exchange=replies",  # the bits of one process
    "tracking.console=quiet",
    "checkpoint.every_rounds=1",
)


def only_run(root: Path) -> Path:
    (folder,) = (p for p in (root / "digits").iterdir() if not p.name.startswith("."))
    return folder


def rounds_done(root: Path) -> int:
    files = list(root.glob("digits/*/metrics.jsonl"))
    return files[0].read_text().count('"event": "round"') if files else 0


def rank_processes(torchrun: int) -> dict[int, int]:
    """Rank -> process id, of torchrun's children."""
    out: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, parent = int(stat.parent.name), int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == torchrun:
                variables = (stat.parent / "environ").read_bytes().split(b"\0")
                out |= {int(v[5:]): pid for v in variables if v.startswith(b"RANK=")}
    return out


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def start(root: Path, *words: str) -> subprocess.Popen[str]:
    command = [*TORCHRUN, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(root)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def words(root: Path, *more: str) -> list[str]:
    return [*WORDS, *more, f"experiment.output_dir={root}"]


def same_model(one: Path, two: Path) -> bool:
    a, b = (load_file(only_run(root) / "model.safetensors") for root in (one, two))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


CODECS = (
    "communication.profile=small",
    "communication.error_feedback=true",
    "communication.downlink_versions=3",
    "communication.measure=exact",
)


@pytest.mark.parametrize("more", [(), CODECS], ids=["exact", "codecs"])
def test_a_rank_dies_and_the_run_resumes_in_one_process(more: tuple[str, ...], tmp_path: Path) -> None:
    """The rest is computed with another number of ranks; the bits still equal those of one process."""
    one, two = tmp_path / "one", tmp_path / "two"
    run = start(tmp_path, "main.py", *words(two, *more))
    try:
        deadline = time.monotonic() + 240  # two imports of torch on a busy machine
        while rounds_done(two) < 2:
            assert run.poll() is None, run.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(rank_processes(run.pid)[1], signal.SIGKILL)
        _, errors = run.communicate(timeout=90)  # the other rank ends without waiting for the dead one
    finally:
        run.kill()
        run.wait()
    assert run.returncode != 0
    folder = only_run(two)
    ours = [line for line in errors.splitlines() if line.startswith("ssfl: ")]
    assert any("rank 1 died" in line or "another rank ended" in line for line in ours), errors
    assert f"continue with: ssfl resume {folder}" in errors
    assert 2 <= rounds_done(two) < ROUNDS

    assert assemble.resume(folder) == 0
    assert assemble.run(load_config(words(one, *more))) == 0
    assert same_model(one, two)
    assert rounds_done(two) == ROUNDS


def test_a_mean_over_two_ranks_is_the_one_process_run_to_rounding(tmp_path: Path) -> None:
    """Only one round, because differences in the last bits of sums grow in later rounds."""
    one, two = tmp_path / "one", tmp_path / "two"
    short = ("training.comm_round=1", "engine.rank_exchange=mean")
    run = start(tmp_path, "main.py", *words(two), *short)
    _, errors = run.communicate(timeout=240)
    assert run.returncode == 0, errors
    assert assemble.run(load_config([*words(one), *short])) == 0
    a, b = (load_file(only_run(root) / "model.safetensors") for root in (one, two))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-6)
    ledgers = [
        [
            json.loads(line).get("uplink_bytes")
            for line in (only_run(root) / "metrics.jsonl").read_text().splitlines()
        ]
        for root in (one, two)
    ]
    assert ledgers[0] == ledgers[1]


@pytest.mark.slow
def test_ranks_begin_and_resume(tmp_path: Path) -> None:
    """Ctrl-C to torchrun, then both ranks resume to the end; only one prints."""
    one, two = tmp_path / "one", tmp_path / "two"
    run = start(tmp_path, "main.py", *words(two))
    try:
        while rounds_done(two) < 2 and run.poll() is None:
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=30)
    finally:
        run.kill()
        run.wait()
    assert "another rank ended" in errors, errors
    again = start(tmp_path, "-m", "ssfl", "resume", str(only_run(two)))
    output, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert output.count("run folder") == 1
    assert assemble.run(load_config(words(one))) == 0
    assert same_model(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("word", ["model.dense_ratio=7", "training.client_num_in_total=100000"])
def test_bad_input_is_told_once_not_once_a_rank(word: str, tmp_path: Path) -> None:
    """Errors in the arguments, and errors that need the data."""
    run = start(tmp_path, "main.py", *words(tmp_path / "out"), word)
    _, errors = run.communicate(timeout=120)
    assert run.returncode != 0
    ours = [line for line in errors.splitlines() if line.startswith("ssfl: ")]
    assert len(ours) == 1, errors
    assert ours[0].startswith(f"ssfl: {word.partition('=')[0]}=")
    assert not (tmp_path / "out").exists()
