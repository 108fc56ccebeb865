"""The benchmarks' options, workload and JSON, without timing."""

from __future__ import annotations

import ast
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from benchmarks import bench_core, bench_scale
from benchmarks.bare import PlainLoop
from benchmarks.bench_round import BARE, OURS, contestants, figures
from benchmarks.contest import (
    Contestant,
    ContestantError,
    RunningContestant,
    Score,
    contest,
    python_contestant,
)
from benchmarks.figures import Figure, paired_ratio, publish, spread, table
from benchmarks.limit import step_calls
from benchmarks.machine import (
    cpu_seconds,
    memory_bytes,
    peak_memory_bytes,
    pss_bytes,
    resident_bytes,
    tree,
)
from benchmarks.ours import Ours, Way, our_data, our_module
from benchmarks.peers.install import PEERS
from benchmarks.workload import accuracy_of, client_arrays, cohort_of, seeded, workload
from tests.support.paths import ROOT

FIELDS = {"name", "value", "unit", "against", "ratio", "n", "spread"}


def test_the_json_is_a_list_of_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Figure("a", 1.0, "s", "b", 2.0, 3, 0.5), Figure("c", 4.0, "GB")]
    publish(rows, tmp_path / "deeper" / "figures.json")
    written = json.loads((tmp_path / "deeper" / "figures.json").read_text())
    assert [set(row) for row in written] == [FIELDS, FIELDS]
    assert written[0]["ratio"] == 2.0
    machine = json.loads((tmp_path / "deeper" / "figures.machine.json").read_text())
    assert machine["torch"] == torch.__version__
    assert table(rows) in capsys.readouterr().out
    publish(rows, tmp_path / "figures.json", kernels=False)
    assert json.loads((tmp_path / "figures.machine.json").read_text())["instruction_sets"]["ssfl"] is None


def test_spread_and_paired_ratio_by_hand() -> None:
    assert spread([1.0]) == 0
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == 2.0
    assert paired_ratio([1.0, 2.0, 10.0], [2.0, 6.0, 20.0]) == 2.0


# ── the workload ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_peer_round() -> None:
    work = workload("cnn")
    arrays = client_arrays(work)
    assert arrays.x.shape == (100, 50, 3, 32, 32)
    assert arrays.x.dtype == torch.float32
    assert set(arrays.y.flatten().tolist()) == set(range(10))
    assert arrays.x.equal(client_arrays(work).x)
    cohort = cohort_of(work, 1)
    assert len(set(cohort)) == 10
    assert cohort != cohort_of(work, 2)
    rest = arrays.x.flatten(0, 1) - _means(arrays.x.flatten(0, 1), arrays.y.flatten())
    assert float(rest.std()) == pytest.approx(1.0, abs=0.01)


def _means(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[y == c].mean(0) for c in range(10)])[y]


@pytest.mark.parametrize("name", ["cnn", "resnet18", "resnet18-quick", "tiny", "scale-10-2-10000"])
def test_sizes_are_what_they_say(name: str) -> None:
    work = workload(name)
    for module in (work.build(), our_module(work)):
        assert sum(p.numel() for p in module.parameters()) == work.parameters


@pytest.mark.parametrize("parameters", [10_000, 100_000, 1_000_000, 11_000_000])
def test_perceptrons_have_about_the_size_asked_for(parameters: int) -> None:
    assert workload(f"scale-1-1-{parameters}").parameters == pytest.approx(parameters, rel=0.02)


def test_an_unknown_workload_is_refused() -> None:
    with pytest.raises(ValueError, match=r"allowed: cnn, resnet18, resnet18-quick, tiny, scale-"):
        workload("vgg")


@pytest.mark.parametrize("name", ["cnn", "resnet18", "tiny", "scale-10-2-10000"])
def test_our_network_is_the_peers_function(name: str) -> None:
    """The same layers in the same order: with copied weights the outputs agree."""
    work = workload(name)
    theirs, ours = work.build(), our_module(work)
    for kind in (nn.Conv2d, nn.GroupNorm, nn.Linear):
        pairs = zip(
            *([m for m in net.modules() if isinstance(m, kind)] for net in (theirs, ours)), strict=True
        )
        for theirs_part, ours_part in pairs:
            ours_part.load_state_dict(theirs_part.state_dict())
    x = torch.randn(2, *work.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_our_data_is_the_workloads() -> None:
    work = workload("scale-10-2-10000")
    arrays, data = client_arrays(work), our_data(work)
    x, y = next(data.train_batches(7, torch.arange(16), 16, None))
    assert x.equal(arrays.x[7])
    assert y.equal(arrays.y[7])


def test_the_limit_covers_every_convolution_and_product() -> None:
    work = workload("resnet18")
    assert len(step_calls(our_module(workload("tiny")), torch.randn(2, 1, 8, 8))) == 3
    kinds = [m for m in our_module(work).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(kinds) == 21


def test_a_plain_round_averages_what_the_clients_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """With training that adds the client's number to every weight, the mean is known."""
    work = workload("scale-6-3-1000")
    loop = PlainLoop(work)
    before = loop.theta.clone()
    numbers = iter([1.0, 2.0, 6.0])

    def trained(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        with torch.no_grad():
            number = next(numbers)
            for parameter in model.parameters():
                parameter.add_(number)

    monkeypatch.setattr("benchmarks.bare.train_client", trained)
    loop.round()
    torch.testing.assert_close(loop.theta, before + 3.0)


@pytest.mark.parametrize("executor", ["sequential", "batched", "auto"])
def test_our_contestant_trains(executor: Literal["sequential", "batched", "auto"]) -> None:
    work = workload("tiny")
    ours = Ours(work, Way(executor))
    start = accuracy_of(seeded(work), client_arrays(work))
    for _ in range(4):
        assert ours.round() > 0
    assert ours.accuracy() > start + 0.2
    assert ours.exchange.client_seconds > 0


# ── contests ─────────────────────────────────────────────────────────────────────────────────────────────────────
COUNTING = """
import sys
from benchmarks.gate import Gate
rounds = []
Gate(*map(int, sys.argv[-2:])).serve(lambda: rounds.append(1), lambda: len(rounds) / 100)
"""


def _contestant(name: str, code: str) -> Contestant:
    return Contestant(name, (sys.executable, "-c", code), patience_seconds=30)


def test_rounds_are_taken_in_turns_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    scores = contest(
        [_contestant("counts", COUNTING), _contestant("breaks", "raise SystemExit('no such thing')")], 3
    )
    assert list(scores) == ["counts"]
    assert len(scores["counts"].seconds) == len(scores["counts"].cpu_seconds) == 3
    assert scores["counts"].accuracy == 0.05  # a first, three measured, one for the memory
    assert scores["counts"].first_seconds == []
    assert "no such thing" in capsys.readouterr().err


def test_a_burst_counts_its_first_round_apart() -> None:
    (score,) = contest([_contestant("counts", COUNTING)], turns=2, burst=3).values()
    assert len(score.seconds) == 6
    assert len(score.first_seconds) == 2
    assert score.accuracy == 0.1  # a first, two bursts of one and three, one for the memory


NOTING = COUNTING.replace("Gate(*map(int, sys.argv[-2:]))", "gate = Gate(*map(int, sys.argv[-2:]))\ngate")
NOTING = NOTING.replace("gate.serve", "gate.note('in blocks')\ngate.serve")


def test_a_note_before_the_first_round_is_kept() -> None:
    (score,) = contest([_contestant("notes", NOTING)], turns=1).values()
    assert (score.note, score.accuracy) == ("in blocks", 0.03)
    assert figures(workload("tiny"), {"notes": score})[0].name == "tiny: notes (in blocks): round"


def test_without_kernels_a_contestant_has_none() -> None:
    """And `auto` chooses none."""
    (score,) = contest(
        [
            python_contestant(
                "ours", "benchmarks.ours", ["tiny", "--executor", "auto", "--cores", "1"], kernels=False
            )
        ],
        turns=1,
    ).values()
    assert score.note.endswith("no kernels")


def test_without_kernels_worker_processes_have_none() -> None:
    code = "from multiprocessing import get_context; from ssfl.native import available;"
    code += "print(available(), get_context('spawn').Pool(1).apply(available))"
    environment = {
        **os.environ,
        **python_contestant("ours", "benchmarks.ours", [], kernels=False).environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "False False\n"


def test_a_quick_round_of_resnet18_is_small() -> None:
    names = [c.name for c in contestants(workload("resnet18-quick"), [], quick=True)]
    assert names == [BARE, OURS]
    assert workload("resnet18-quick").round_examples < workload("resnet18").round_examples / 4


def test_a_contestant_leaves_no_process_behind() -> None:
    child = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    )
    running = RunningContestant(_contestant("has a child", child + COUNTING))
    pids = tree(running.process.pid)
    assert len(pids) == 2
    running.close()
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in pids):  # a killed process is gone a moment later
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_silence_ends_the_wait() -> None:
    with pytest.raises(ContestantError, match="did not answer for 0 s"):
        RunningContestant(
            Contestant("mute", (sys.executable, "-c", "import time; time.sleep(60)"), patience_seconds=0.2)
        )


def test_this_process_uses_time_and_memory() -> None:
    assert cpu_seconds([os.getpid()]) > 0
    assert 1e6 < pss_bytes([os.getpid()]) < 1e11


def anonymous_bytes(pid: int) -> int:
    """Anonymous memory of a process in bytes, as counted by the kernel."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("the kernel does not say")


def test_the_peak_is_seen_where_it_passes() -> None:
    """A process allocates 200 MB for half a second and frees them."""
    code = "import sys, time\nfor _ in sys.stdin:\n    block = bytearray(200_000_000); time.sleep(0.5); del block\n"
    code += "    print('done', flush=True)"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        streams = (process.stdin, process.stdout)

        def during() -> None:
            print(file=streams[0], flush=True)
            streams[1].readline()

        during()
        before = memory_bytes([process.pid])
        peak = peak_memory_bytes(process.pid, during)
        process.kill()
    assert peak - before == pytest.approx(2e8, rel=0.05)


def test_memory_does_not_depend_on_who_else_has_the_libraries_open() -> None:
    """The memory of one process is its resident set; with two processes, shared pages of files count once."""

    def started() -> subprocess.Popen[str]:
        code = "import torch; print('ready', flush=True); input()"
        pipe = subprocess.PIPE
        process = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    with started() as first:
        alone = memory_bytes([first.pid])
        resident = int(Path(f"/proc/{first.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert alone == pytest.approx(resident, rel=0.02)
        with started() as second:
            assert memory_bytes([first.pid]) == pytest.approx(alone, rel=0.02)
            assert pss_bytes([first.pid]) < 0.95 * alone
            both = memory_bytes([first.pid, second.pid])
            assert alone < both < resident_bytes([first.pid, second.pid])
            # The second process adds only its own memory: its proportional size without the files that both have open.
            assert both - alone == pytest.approx(anonymous_bytes(second.pid), rel=0.1)
            second.kill()
        first.kill()


def test_a_slope_of_growth() -> None:
    assert bench_scale.slope([1, 10, 100], [3, 30, 300]) == pytest.approx(1.0)
    assert bench_scale.slope([1, 10, 100], [5, 5, 5]) == pytest.approx(0.0)


def test_slopes_of_a_series_leave_the_data_out() -> None:
    """Times double for each factor of ten, memory is the data plus 1 GB: the slopes are log10(2) and 0."""
    settings = [bench_scale.Setting(n, 10, 1000) for n in (10, 100, 1000)]
    scores = {}
    for doublings, setting in enumerate(settings):
        data = setting.clients * 16 * (64 * 4 + 8)
        scores[setting] = Score(0.0, [2.0**doublings] * 3, peak_bytes=1e9 + data)
    series = bench_scale.Series("clients", "clients", settings)
    time, memory, without = (row.value for row in bench_scale.slopes(series, scores))
    assert time == pytest.approx(math.log10(2))
    assert memory > 0
    assert without == pytest.approx(0.0)
    assert bench_scale.slopes(series, {settings[0]: scores[settings[0]]}) == []


def test_what_a_share_of_bandwidth_is() -> None:
    """Half the bytes in the time of the copy means half the bandwidth."""
    done = bench_core.Measured([2.0, 2.0], [2.0, 2.0], copied_bytes=100)
    assert math.isclose(done.share(50).value, 0.5)


@pytest.mark.parametrize("peer", sorted(PEERS))
def test_peers_need_nothing_of_ours(peer: str) -> None:
    """A peer's environment has no ssfl: its driver may import the workload and the gate only."""
    path = ROOT / "benchmarks" / "peers" / f"{peer}.py"
    allowed = {"benchmarks.gate", "benchmarks.workload", "benchmarks.peers.torchvision_stub"}
    allowed |= {"benchmarks.peers.flower_client"}
    modules = {n.module or "" for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)}
    assert {m for m in modules if m.startswith(("benchmarks", "ssfl"))} <= allowed
