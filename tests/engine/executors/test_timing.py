"""The short measurement changes no state; its result is cached, printed once, and kept by a resumed run."""

from __future__ import annotations

import importlib.util
import json
import linecache
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssfl.assemble import calibration_key, execution, measurement
from ssfl.assemble.build import RunSetup
from ssfl.assemble.execution import resolve_engine
from ssfl.assemble.executors import Workload, estimates
from ssfl.assemble.measurement import measured
from ssfl.code_version import PACKAGE, code_version
from ssfl.config import EngineConfig, config_from_yaml, config_to_yaml
from ssfl.core.layout import Layout
from ssfl.engine.executors.own_step import OwnStep
from ssfl.engine.executors.step_times import Form, StepTimes
from ssfl.engine.executors.timing import BATCHED_PARAMETERS, time_steps
from ssfl.native import available
from tests.support.assembled import run_setup
from tests.support.rigs import tiny_net

pytestmark = pytest.mark.usefixtures("two_steps")


# ── one measurement ──────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("training", [True, False])
def test_module_and_random_state_stay_as_they_are(training: bool) -> None:
    module = tiny_net("batch").train(training)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    drawn = torch.get_rng_state()
    time_steps(module, (1, 6, 6), 4, block=1, workers=1)
    assert torch.get_rng_state().equal(drawn)
    assert all(value.equal(before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    assert module.training is training


def test_every_form_is_timed_where_it_exists() -> None:
    images = time_steps(tiny_net(), (1, 6, 6), 4, block=3, workers=1)
    assert images.contiguous > 0
    assert images.channels_last is not None
    assert images.channels_last > 0
    assert images.batched is not None
    assert images.batched > 0
    assert images.block == 3
    assert images.batched_in_worker == images.batched
    halves = time_steps(tiny_net(), (1, 6, 6), 4, block=4, worker_block=2)
    assert halves.batched_in_worker not in (None, halves.batched)
    assert time_steps(tiny_net(), (1, 6, 6), 4, block=2, worker_block=1).batched_in_worker is None
    features = time_steps(nn.Sequential(nn.Linear(5, 3)), (5,), 4, block=1, workers=1)
    assert features.channels_last is None
    assert features.form() == ("contiguous", "direct")
    assert features.best_alone == features.contiguous


def test_blocks_are_not_tried_where_they_cannot_or_need_not_be() -> None:
    assert time_steps(tiny_net(), (1, 6, 6), 4, block=1).batched is None
    assert time_steps(tiny_net("batch"), (1, 6, 6), 4, block=3).batched is None  # running statistics
    wide = nn.Sequential(nn.Linear(5, BATCHED_PARAMETERS // 5), nn.Linear(BATCHED_PARAMETERS // 5, 2))
    assert Layout.of(wide).size > BATCHED_PARAMETERS
    assert time_steps(wide, (5,), 2, block=3).batched is None


@pytest.mark.parametrize(
    ("contiguous", "last", "chosen", "best"),
    [
        (1.0, 0.9, "channels_last", 0.9),
        (1.0, 0.98, "contiguous", 0.98),  # 2 % is noise
        (1.0, 1.5, "contiguous", 1.0),
        (1.0, None, "contiguous", 1.0),
    ],
)
def test_the_memory_format_must_win_by_three_percent(
    contiguous: float, last: float | None, chosen: str, best: float
) -> None:
    times = StepTimes(contiguous, last, None, 1)
    mixed = replace(times, mixed=0.96 * best)
    assert (mixed.form(), mixed.best_alone) == (("mixed", "direct"), 0.96 * best)
    assert replace(times, mixed=0.99 * best).form() == (chosen, "direct")
    assert (times.form(), times.best_alone) == ((chosen, "direct"), best)


def test_forms_are_chosen_among_those_asked_for() -> None:
    times = StepTimes(1.0, 0.9, None, 1, mixed=0.8, winograd=0.5)
    assert times.form() == ("channels_last", "winograd")
    assert times.form(convolutions="direct") == ("mixed", "direct")
    assert times.form("channels_last") == ("channels_last", "winograd")
    assert times.form("channels_last", "direct") == ("channels_last", "direct")
    assert times.form("contiguous") == ("contiguous", "direct")
    assert replace(times, winograd=2.0).form(convolutions="winograd") == ("channels_last", "winograd")
    assert StepTimes(1.0, None, None, 1).form("channels_last") == ("channels_last", "direct")
    assert times.best_alone == 0.5


# ── cached, printed, kept ────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[StepTimes]:
    """A new cache, and counted measurements that always differ."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[StepTimes] = []

    def measure(
        module: nn.Module,
        shape: Any,
        batch_size: int,
        block: int,
        workers: int,
        native: bool,
        dtype: torch.dtype,
        own: OwnStep | None,
        worker_block: int,
    ) -> StepTimes:
        made.append(StepTimes(1.0 + len(made), 0.5 + len(made), None, block, None, workers))
        return made[-1]

    monkeypatch.setattr(measurement, "time_steps", measure)
    monkeypatch.setattr(measurement, "others_share", lambda since, now: 0.0)
    return made


@pytest.fixture(scope="module")
def run() -> RunSetup:
    return run_setup(
        "engine.executor=auto", "engine.memory_format=auto", "engine.block=auto", "engine.workers=2"
    )


def cache_files(tmp_path: Path) -> list[Path]:
    return [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_measurement_is_made_once_and_told_once(
    run: RunSetup, counted: list[StepTimes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = measured(run, 16, 2, 1)
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "measured this machine once, to choose the fastest way to compute" in printed
    assert measured(run, 16, 2, 1) == first
    assert capsys.readouterr().err == ""
    assert len(counted) == 1
    (file,) = cache_files(tmp_path)
    assert printed.rstrip().endswith(f"details: {file}")
    assert json.loads(file.read_text()) == asdict(first)


@pytest.mark.parametrize("other", [(8, 2, 1), (16, 3, 1), (16, 2, 2), (16, 2, 1, True)])
def test_another_step_is_measured_anew(
    run: RunSetup, counted: list[StepTimes], other: tuple[Any, ...]
) -> None:
    measured(run, 16, 2, 1)
    measured(run, *other)
    assert len(counted) == 2


def test_another_network_is_measured_anew(run: RunSetup, counted: list[StepTimes]) -> None:
    measured(run, 16, 2, 1)
    measured(run_setup("model.name=mlp"), 16, 2, 1)
    assert len(counted) == 2


@pytest.mark.parametrize("name", calibration_key.CAPS)
def test_a_capped_instruction_set_is_measured_anew(
    run: RunSetup, counted: list[StepTimes], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(run, 16, 2, 1)
    monkeypatch.setenv(name, "something else")
    measured(run, 16, 2, 1)
    assert len(counted) == 2


def test_another_precision_is_measured_anew(run: RunSetup, counted: list[StepTimes]) -> None:
    measured(run, 16, 2, 1)
    measured(run_setup("engine.executor=auto", "engine.precision=bf16"), 16, 2, 1)
    assert len(counted) == 2


def network_from(file: Path, text: str) -> nn.Module:
    """The network of a user's file, imported again."""
    file.write_text(text)
    linecache.checkcache()
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    made: nn.Module = module.Net()
    return made


def test_a_network_whose_code_changes_is_measured_anew(
    run: RunSetup, counted: list[StepTimes], tmp_path: Path
) -> None:
    """Also if its layers and weights stay the same."""
    text = (
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def forward(self, x):\n        return {}\n"
    )
    for body, found in (("x", 1), ("x", 1), ("x + 1", 2)):
        net = network_from(tmp_path / "own_network.py", text.format(body))
        measured(replace(run, module=net), 16, 2, 1)
        assert len(counted) == found


DAMAGED = [
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"contiguous": 1.0, "unknown": 2}',
    b'{"contiguous": "quick", "channels_last": null, "batched": null, "block": 2}',
    b'{"contiguous": 1.0, "channels_last": null, "batched": null, "block": "two"}',
    b'{"contiguous": -1.0, "channels_last": null, "batched": null, "block": 2}',
    b'{"contiguous": NaN, "channels_last": null, "batched": null, "block": 2}',
    b'{"contiguous": null, "channels_last": 1.0, "batched": null, "block": 2}',
]


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_cache_is_measured_again(
    run: RunSetup, counted: list[StepTimes], tmp_path: Path, text: bytes
) -> None:
    measured(run, 16, 2, 1)
    (file,) = cache_files(tmp_path)
    file.write_bytes(text)
    assert measured(run, 16, 2, 1) == counted[1]
    assert json.loads(file.read_text()) == asdict(counted[1])


@pytest.mark.parametrize("digest", ["other", None])
def test_other_compiled_kernels_are_measured_anew(
    run: RunSetup, counted: list[StepTimes], digest: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(run, 16, 2, 1)
    other = replace(code_version(), kernels=digest)
    monkeypatch.setattr(calibration_key, "code_version", lambda: other)
    measured(run, 16, 2, 1)
    assert len(counted) == 1 + (code_version().kernels != digest)


@pytest.mark.parametrize(
    ("file", "again"),
    [("engine/compute/fused_layers.py", True), ("models/small.py", True), ("report/write.py", False)],
)
def test_a_changed_source_of_a_step_is_measured_anew(
    run: RunSetup,
    counted: list[StepTimes],
    file: str,
    again: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a copy of the package's files."""
    copied = tmp_path / "package"
    for source in PACKAGE.rglob("*.py"):
        place = copied / source.relative_to(PACKAGE)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(source.read_bytes())
    monkeypatch.setattr(calibration_key, "PACKAGE", copied)
    for change in ("", "# changed\n"):
        with (copied / file).open("a") as stream:
            stream.write(change)
        calibration_key.source_digest.cache_clear()
        measured(run, 16, 2, 1)
    calibration_key.source_digest.cache_clear()
    assert len(counted) == 1 + again


# ── a machine that others use too ────────────────────────────────────────────────────────────────────────────────────
PLAIN = StepTimes(1.0, 2.0, None, 2, 0.7, 1)
LAST = replace(PLAIN, channels_last=0.5)
"""One leads to contiguous images, the other to channels last."""


@pytest.mark.parametrize(
    ("times", "shares", "taken", "kept"),
    [
        ([LAST], [0.0], LAST, True),
        ([PLAIN, LAST], [0.9, 0.0], LAST, True),  # repeated until it is calm
        ([LAST, LAST], [0.9, 0.9], replace(LAST, threaded=None), False),  # or until two agree
        ([PLAIN, LAST, LAST], [0.9, 0.9, 0.9], replace(LAST, threaded=None), False),
        ([PLAIN, LAST, PLAIN], [0.9, 0.9, 0.9], StepTimes(1.0, None, None, 2, workers=1), False),
    ],
)
def test_what_was_measured_on_a_busy_machine_is_not_kept(
    run: RunSetup,
    times: list[StepTimes],
    shares: list[float],
    taken: StepTimes,
    kept: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found, loads = iter(times), iter(shares)
    monkeypatch.setattr(measurement, "time_steps", lambda *_: next(found))
    monkeypatch.setattr(measurement, "others_share", lambda *_: next(loads))
    assert measured(run, 16, 2, 1) == taken
    assert next(found, None) is None  # no more than needed
    assert len(cache_files(tmp_path)) == kept
    assert ("this machine is busy" in capsys.readouterr().err) == (not kept)


def test_measurements_can_be_forgotten(run: RunSetup, counted: list[StepTimes], tmp_path: Path) -> None:
    measured(run, 16, 2, 1)
    measured(run, 8, 2, 1)
    (tmp_path / "ssfl" / "calibration" / "notes.txt").write_text("mine")
    assert measurement.forget_measurements() == 2
    assert [path.name for path in cache_files(tmp_path)] == ["notes.txt"]
    assert measurement.forget_measurements() == 0


def test_without_a_place_for_the_cache_the_run_goes_on(
    run: RunSetup,
    counted: list[StepTimes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert measured(run, 16, 2, 1) == counted[0]
    assert "the measurement is not cached" in capsys.readouterr().err


def test_what_was_chosen_is_in_the_configuration_and_a_repeat_keeps_it(
    run: RunSetup, counted: list[StepTimes]
) -> None:
    resolved = resolve_engine(run.config, run)
    engine = resolved.engine
    assert "auto" not in (engine.executor, engine.workers, engine.block, engine.memory_format, engine.device)
    assert engine.precision == run.config.engine.precision
    taken = len(counted)
    assert taken == 1
    again = config_from_yaml(config_to_yaml(resolved))
    assert again == resolved
    assert resolve_engine(again, run) == resolved
    assert len(counted) == taken  # no choice, no measurement


def test_no_step_is_measured_with_more_examples_than_a_client_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch size of a million means the client's whole data: 72 of the 1,438 digits at most."""
    sizes: list[int] = []

    def timed(module: nn.Module, shape: tuple[int, ...], batch_size: int, *more: Any) -> StepTimes:
        sizes.append(batch_size)
        return StepTimes(1.0, 1.0, None, 1)

    monkeypatch.setattr(measurement, "time_steps", timed)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ("engine.executor=auto", "engine.memory_format=auto", "training.batch_size=1000000")
    run = run_setup(*words)
    resolve_engine(run.config, run)
    assert set(sizes) == {max(run.context.example_counts.values())}
    assert max(sizes) <= 1438


def test_executors_are_weighed_by_the_form_that_will_compute(run: RunSetup) -> None:
    """With direct convolutions configured, faster Winograd steps are not used for any executor."""
    times = StepTimes(1.0, 0.8, 0.5, 4, threaded=0.6, workers=2, winograd=0.4)
    forms = [Form("channels_last", "winograd"), Form("channels_last", "direct"), Form("mixed", "direct")]
    assert [times.alone(form) for form in forms] == [0.4, 0.8, 1.0]
    fast, direct, _ = (seconds_of(run, times, form) for form in forms)
    for name, factor in (("sequential", 2.0), ("threads", 2.0)):
        assert direct[name] == pytest.approx(factor * fast[name])
    assert direct["batched"] < direct["sequential"]
    assert fast["batched"] > fast["sequential"]


def seconds_of(run: RunSetup, times: StepTimes, form: Form) -> dict[str, float]:
    """Estimate per executor; the better of single clients and blocks."""
    load = measurement.workload(run.config, run, times, form, 2, 4)
    found: dict[str, float] = {}
    for name, _, seconds in estimates(load, run.config.engine):
        found[name] = min(seconds, found.get(name, seconds))
    return found


def test_estimates_leave_out_what_an_executor_cannot_do() -> None:
    times = StepTimes(1.0, 0.8, 0.5, 4, threaded=0.6, workers=2, batched_in_worker=0.5)
    load = Workload(100.0, 10.0, 4, 2, times, Form("channels_last", "direct"))

    def found(**settings: Any) -> set[tuple[str, bool]]:
        engine = replace(EngineConfig(), **settings)
        return {(one.executor, one.in_blocks) for one in estimates(load, engine)}

    alone = {("sequential", False), ("threads", False), ("processes", False)}
    blocks = {("batched", True), ("processes", True)}
    assert found() == alone | blocks
    assert found(block=1) == found(compaction=True) == alone
    assert found(block=4) == blocks
    assert found(compile=True) == {("sequential", False), ("processes", False)}
    assert found(executor="threads") == {("threads", False)}


def test_estimates_by_hand() -> None:
    times = StepTimes(2.0, None, 0.5, 4, threaded=3.0, workers=2, batched_in_worker=0.75)
    load = Workload(120.0, 10.0, 3, 2, times, Form("contiguous", "direct"))
    seconds = {one[:2]: one.seconds for one in estimates(load, EngineConfig())}
    assert seconds["sequential", False] == 120 * 2 + 10 * 2
    assert seconds["batched", True] == 120 * 0.5 + 10 * 2
    assert seconds["threads", False] == pytest.approx((120 * 2 / 3 + 10 / 2) * 3)
    assert seconds["processes", False] == pytest.approx(4 + 10 * 2 / 2 + 120 * 2 / 3 * 2 * 1.1)
    assert seconds["processes", True] == pytest.approx(4 + 10 * 2 / 2 + 120 * 2 / 3 * 0.75 * 1.1)


def test_kernels_pay_where_they_beat_pytorchs_layers() -> None:
    times = StepTimes(1.0, 0.9, None, 1, mixed=0.8, winograd=0.5)
    best, direct = times.form(), times.form(convolutions="direct")
    assert times.kernels_pay(best)  # no time without kernels to compare with
    assert replace(times, plain=0.5).kernels_pay(best)
    assert not replace(times, plain=0.49).kernels_pay(best)
    assert not replace(times, plain=0.6).kernels_pay(direct)  # the form that will compute counts
    assert not replace(times, plain=0.49, batched=0.4).kernels_pay(
        best
    )  # single clients do not compute in blocks
    assert time_steps(tiny_net(), (1, 6, 6), 4, block=1).plain is None
    if available():
        assert time_steps(tiny_net(), (1, 6, 6), 4, block=1, native=True).plain is not None


@pytest.mark.skipif(not available(), reason="the kernels were not built: no C compiler at installation")
@pytest.mark.parametrize(
    ("kernels", "plain", "chosen"),
    [
        # The kernels are faster for single clients: they are kept, and nothing else is measured.
        (StepTimes(1.0, None, None, 2, 1.0, 2, plain=2.0), None, ("threads", "native")),
        (
            StepTimes(1.0, None, None, 2, 1.0, 2, plain=0.5),
            StepTimes(0.5, None, None, 2, 0.5, 2),
            ("threads", "torch"),
        ),
        # Blocks with kernels are faster than one client without them, two threads without kernels faster still.
        (
            StepTimes(1.3, None, 0.95, 2, 1.3, 2, plain=1.0),
            StepTimes(1.0, None, 1.1, 2, 1.0, 2),
            ("threads", "torch"),
        ),
        # Blocks with kernels are the fastest of all.
        (
            StepTimes(1.3, None, 0.3, 2, 1.3, 2, batched_in_worker=0.3, plain=1.0),
            StepTimes(1.0, None, 1.1, 2, 1.0, 2),
            ("processes", "native"),
        ),
    ],
)
def test_auto_leaves_kernels_that_do_not_pay(
    kernels: StepTimes, plain: StepTimes | None, chosen: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fastest way with kernels is compared with the fastest without; configured kernels are kept."""
    asked: list[bool] = []

    def times(
        setup: RunSetup, batch_size: int, block: int, workers: int, native: bool, worker_block: int
    ) -> StepTimes:
        asked.append(native)
        assert worker_block == -(-block // workers)
        found = kernels if native else plain
        assert found is not None
        return found

    monkeypatch.setattr(execution, "measured", times)
    words = ("engine.executor=auto", "engine.block=auto", "engine.memory_format=auto", "engine.workers=2")
    run = run_setup(*words, "engine.kernels=auto")
    engine = resolve_engine(run.config, run).engine
    assert (engine.executor, engine.kernels) == chosen
    assert asked == ([True] if plain is None else [True, False])
    run = run_setup(*words, "engine.kernels=native")
    assert resolve_engine(run.config, run).engine.kernels == "native"


@pytest.mark.skipif(not available(), reason="the kernels were not built: no C compiler at installation")
@pytest.mark.parametrize(("plain", "kernels"), [(1.5, "native"), (0.9, "torch")])
def test_kernels_are_compared_in_the_configured_form(
    plain: float, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without kernels nothing is left to choose; the configured format is measured all the same."""

    def times(
        setup: RunSetup, batch_size: int, block: int, workers: int, native: bool, *more: int
    ) -> StepTimes:
        if native:
            return StepTimes(1.3, 1.3, None, 1, winograd=1.2, plain=0.9)
        return StepTimes(0.9, plain, None, 1)

    monkeypatch.setattr(execution, "measured", times)
    run = run_setup("engine.executor=sequential", "engine.memory_format=channels_last", "engine.kernels=auto")
    assert resolve_engine(run.config, run).engine.kernels == kernels


@pytest.mark.parametrize(
    ("words", "again"),
    [
        (("algorithm=fedavg",), False),  # the same step as SSFL's
        (("algorithm=local",), False),
        (("algorithm=sparsyfed",), True),
    ],
)
def test_methods_with_their_own_step_are_measured_anew(
    run: RunSetup, counted: list[StepTimes], words: tuple[str, ...], again: bool
) -> None:
    measured(run, 16, 2, 1)
    measured(run_setup(*words), 16, 2, 1)
    assert len(counted) == 1 + again
    measured(run_setup(*words, "optimizer.lr=0.5"), 16, 2, 1)
    assert len(counted) == 1 + again
    if again:
        measured(run_setup(*words, "algorithm.params.prune_activations=false"), 16, 2, 1)
        assert len(counted) == 3


@pytest.mark.skipif(not available(), reason="the kernels were not built: no C compiler at installation")
@pytest.mark.parametrize(("executor", "kernels"), [("sequential", "native"), ("batched", "torch")])
def test_kernels_serve_one_client_over_several_threads(executor: str, kernels: str) -> None:
    """The kernel of a block's convolutions supports only one thread."""
    run = run_setup(f"engine.executor={executor}", "engine.threads=2", "engine.kernels=auto")
    engine = resolve_engine(run.config, run).engine
    assert (engine.executor, engine.threads, engine.kernels) == (executor, 2, kernels)


class FailsOnThreads(nn.Module):
    """Computes in the main thread only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            raise ArithmeticError("not on a thread")
        scores: Tensor = self.linear(x)
        return scores


def test_a_thread_that_fails_leaves_no_other_waiting() -> None:
    with pytest.raises(ArithmeticError, match="not on a thread"):
        time_steps(FailsOnThreads(), (4,), 2, block=1, workers=3)
