"""Runs through the real command line, as processes that can be killed at a chosen moment."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

ROUNDS = 4
WORDS = (
    "preset=digits",
    f"training.comm_round={ROUNDS}",
    "training.epochs=1",
    "training.client_num_per_round=4",
    "engine.executor=sequential",
    "engine.memory_format=contiguous",
    "tracking.console=quiet",
    "checkpoint.every_rounds=1",
)
TIMEOUT = 240
"""Maximum seconds for any step, also on a busy machine."""

KILLED_AT_FILE = """
import os, signal, sys
left, place = int(sys.argv.pop(1)), sys.argv.pop(1)

def count(event, arguments):
    global left
    if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(arguments[0]).startswith(place):
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
from ssfl.cli import main
raise SystemExit(main())
"""
"""ssfl that dies as by kill -9 directly before its n-th file operation in a folder."""


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}


def start(root: Path, *words: str | Path, program: Sequence[str] = ("-m", "ssfl")) -> subprocess.Popen[str]:
    """A process of `ssfl WORDS` in `root`, in a new session."""
    return subprocess.Popen(
        [sys.executable, *program, *map(str, words)],
        cwd=root,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hangup_as_usual,
    )


def hangup_as_usual() -> None:
    """Restore the default action of SIGHUP, also if the tests run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def start_run(root: Path, *words: str) -> subprocess.Popen[str]:
    return start(root, "run", *WORDS, *words)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code and output."""
    out, err = process.communicate(timeout=TIMEOUT)
    return process.returncode, out, err


def resumed(root: Path, folder: Path) -> tuple[int, str, str]:
    return ended(start(root, "resume", folder))


def killed(process: subprocess.Popen[str], number: signal.Signals = signal.SIGKILL) -> tuple[int, str, str]:
    """Ended by a signal."""
    process.send_signal(number)
    return ended(process)


def killed_at_file(root: Path, count: int, *words: str | Path) -> int:
    """The exit code of `ssfl WORDS`, killed at the `count`-th file operation below root/outputs if it gets there."""
    program = ("-c", KILLED_AT_FILE, str(count), str(root / "outputs"))
    return ended(start(root, *words, program=program))[0]


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait until the condition holds; fail if the process ends first, or after TIMEOUT."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, ended(process)
        assert time.monotonic() < end
        time.sleep(0.002)


def listens(process: subprocess.Popen[str]) -> bool:
    """Whether the command line's handler of SIGTERM is installed."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def folders(root: Path) -> list[Path]:
    """The run folders in root, without hidden ones."""
    return sorted(p for p in root.glob("outputs/digits/*") if not p.name.startswith("."))


def only(root: Path) -> Path:
    (folder,) = folders(root)
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    """Complete lines of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def count_events(root: Path, event: str) -> int:
    """Number of rows of a kind in all runs in root."""
    return sum(row["event"] == event for folder in folders(root) for row in rows(folder))


def results(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a run's exchanges, without times."""
    for row in rows(folder):
        if row["event"] in ("round", "phase"):
            yield {k: v for k, v in row.items() if "seconds" not in k}


def check_same_end(folder: Path, whole: Path, losses: bool = True) -> None:
    """Check that a stopped run ended like an uninterrupted one: the same bytes, the same rows, no duplicates.

    losses: False between executors: evaluation losses may differ in the last float32 bits, though weights do not.
    """
    names = [n for n in ("model.safetensors", "client_models.safetensors") if (whole / n).exists()]
    assert names
    for name in names:
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    ours, theirs = ([_comparable(row, losses) for row in results(f)] for f in (folder, whole))
    assert ours == theirs
    kinds = [row["event"] for row in rows(folder)]
    assert kinds.count("run_started") == kinds.count("run_finished") == 1
    assert not list(folder.glob(".*.new")) + list((folder / "checkpoints").glob(".*"))


def _comparable(row: dict[str, Any], losses: bool) -> dict[str, Any]:
    return {k: v for k, v in row.items() if losses or k not in ("global_loss", "client_loss_mean")}


def said_how_to_go_on(err: str, folder: Path) -> bool:
    """Whether the output has the resume command and no traceback."""
    place = re.escape(str(folder.relative_to(folder.parents[2])))
    return (
        bool(re.search(rf"continue with: ssfl resume \S*{place}$", err, re.MULTILINE))
        and "Traceback" not in err
    )
