"""The guide of docs/deployment.md, followed command by command, with network namespaces as hosts."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")

from benchmarks.link.namespaces import Star, reason_against, star
from ssfl.cli_parser import build_parser
from ssfl.deploy.federation.folders import make_federation
from ssfl.deploy.processes.process_group import ProcessGroup, flower_environment
from tests.support.paths import ROOT

STEP = re.compile(r"<!-- guide: (.+?) -->\n```\n(.+?)\n```", re.DOTALL)
SECONDS = 180.0


@dataclass(frozen=True)
class Step:
    """One command: where it runs, and what shows that it worked."""

    host: str
    background: bool
    shows: str
    words: list[str]


def steps() -> list[Step]:
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    found = []
    for options, command in STEP.findall(text):
        host, *more = [part.strip() for part in options.split(",")]
        shows = re.search(r'"(.+)"', options)
        words = shlex.split(command)
        assert words[0] in ("ssfl", "cp")
        python = [sys.executable, "-m"] if words[0] == "ssfl" else []
        background = "background" in more
        found.append(Step(host, background, shows.group(1) if shows else "", [*python, *words]))
    return found


def namespace(net: Star, host: str) -> str:
    return {"server": net.server, "site a": net.site(0), "site b": net.site(1), "researcher": net.site(2)}[
        host
    ]


def hospital(folder: Path, seed: int) -> None:
    """A table of 8 features and two classes."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 2, 60 + 20 * seed)
    x = draw.normal(size=(len(y), 8)).astype(np.float32) + y[:, None]
    np.savez(folder / f"{'ab'[seed]}.npz", train_x=x, train_y=y, class_names=np.array(["healthy", "ill"]))


def test_the_guide_has_its_steps() -> None:
    assert [(s.host, s.background) for s in steps()] == [
        ("server", False),
        ("site b", False),
        ("server", False),
        ("site b", False),
        ("server", True),
        ("site a", False),
        ("site a", True),
        ("site b", True),
        ("server", False),
        ("server", False),
        ("researcher", False),
    ]


def test_every_command_of_the_page_exists() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for block in re.findall(r"```\n(.+?)\n```", text, re.DOTALL) for line in block.splitlines()]
    lines += re.findall(r"`(ssfl deploy \w+ [^`]*--folder[^`]*)`", text)
    commands = [line[line.index("ssfl deploy ") :] for line in lines if "ssfl deploy " in line]
    assert len(commands) > 20
    for command in commands:
        assert build_parser().parse_args(shlex.split(command)[1:]).verb == "deploy", command


def test_a_moved_folder_of_a_researcher_works_after_the_step_of_the_page(tmp_path: Path) -> None:
    make_federation(tmp_path / "f", ["a"], "127.0.0.1:8000")
    (tmp_path / "f" / "researcher").rename(tmp_path / "researcher")
    (line,) = re.findall(r"^sed .+$", (ROOT / "docs" / "deployment.md").read_text(), re.MULTILINE)
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True, timeout=60)
    text = (tmp_path / "researcher" / "flwr" / "config.toml").read_text()
    assert f'root-certificates = "{tmp_path}/researcher/ca.crt"' in text.splitlines()


@pytest.mark.slow
def test_the_guide_works_command_by_command(tmp_path: Path) -> None:
    if (reason := reason_against()) is not None:
        pytest.skip(reason)
    for seed in (0, 1):
        hospital(tmp_path, seed)
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = ProcessGroup({**flower_environment(tmp_path / "federation" / "server"), **environment})
    try:
        with star(3) as net:
            net.connect(100.0, 5.0)
            for number, step in enumerate(steps()):
                follow(step, number, net, processes, tmp_path)
            a_hospital_cannot_start_a_run(net, tmp_path)
    finally:
        processes.close()


def a_hospital_cannot_start_a_run(net: Star, folder: Path) -> None:
    """Its address is not among those of --control-from."""
    words = ["-m", "ssfl", "deploy", "run", "--superlink", "10.77.0.1:8000", "preset=digits"]
    words += ["--root-certificates", "federation/sites/a/ca.crt"]
    done = subprocess.run(
        [*net.inside(net.site(0)), sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "see --control-from" in line


def follow(step: Step, number: int, net: Star, processes: ProcessGroup, folder: Path) -> None:
    words = [
        *net.inside(namespace(net, step.host)),
        "env",
        "-C",
        str(folder),
        *step.words,
    ]
    log = folder / f"step{number}.log"
    child: subprocess.Popen[bytes] = processes.start(f"step {number}", words, log)
    end = time.monotonic() + SECONDS
    while True:
        text = log.read_text(errors="replace")
        ended = child.poll()
        if step.background and step.shows in text:
            return
        if not step.background and ended is not None:
            assert ended == 0, text
            assert step.shows in text
            return
        assert ended is None, f"{step.words} ended with {ended}\n{text}"
        assert time.monotonic() < end, f"{step.words}: nothing shows {step.shows!r}\n{text}"
        time.sleep(0.2)
