"""The short measurement leaves no trace; what was chosen is cached, told once, and kept by a repeat."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssfl.assemble import estimates
from ssfl.assemble.build import Parts
from ssfl.assemble.estimates import measured
from ssfl.assemble.execution import resolve_engine
from ssfl.config import config_from_yaml, config_to_yaml
from ssfl.core.layout import Layout
from ssfl.engine import calibrate
from ssfl.engine.calibrate import BATCHED_PARAMETERS, Form, StepTimes, time_steps
from ssfl.native import available
from tests.assemble.support import parts
from tests.engine.support import tiny_net


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two steps a form are enough to see what a measurement does."""
    monkeypatch.setattr(calibrate, "STEPS", 2)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


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


# ── cached, told, kept ───────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[StepTimes]:
    """A cache of its own, and measurements that are counted and never the same."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[StepTimes] = []

    def measure(
        module: nn.Module, shape: Any, batch_size: int, block: int, workers: int, native: bool
    ) -> StepTimes:
        made.append(StepTimes(1.0 + len(made), 0.5 + len(made), None, block, None, workers))
        return made[-1]

    monkeypatch.setattr(estimates, "time_steps", measure)
    return made


@pytest.fixture(scope="module")
def run() -> Parts:
    return parts("engine.executor=auto", "engine.memory_format=auto", "engine.block=auto", "engine.workers=2")


def cache_files(tmp_path: Path) -> list[Path]:
    return [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_measurement_is_made_once_and_told_once(
    run: Parts, counted: list[StepTimes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = measured(run, 16, 2, 1)
    said = capsys.readouterr().err
    assert "measured once on this machine" in said
    assert measured(run, 16, 2, 1) == first
    assert capsys.readouterr().err == ""
    assert len(counted) == 1
    (file,) = cache_files(tmp_path)
    assert json.loads(file.read_text()) == asdict(first)


@pytest.mark.parametrize("other", [(8, 2, 1), (16, 3, 1), (16, 2, 2), (16, 2, 1, True)])
def test_another_step_is_measured_anew(run: Parts, counted: list[StepTimes], other: tuple[Any, ...]) -> None:
    measured(run, 16, 2, 1)
    measured(run, *other)
    assert len(counted) == 2


def test_another_network_is_measured_anew(run: Parts, counted: list[StepTimes]) -> None:
    measured(run, 16, 2, 1)
    measured(parts("model.name=mlp"), 16, 2, 1)
    assert len(counted) == 2


@pytest.mark.parametrize("text", ["", "{", '{"contiguous": 1.0, "unknown": 2}', "[]"])
def test_a_damaged_cache_is_measured_again(
    run: Parts, counted: list[StepTimes], tmp_path: Path, text: str
) -> None:
    measured(run, 16, 2, 1)
    (file,) = cache_files(tmp_path)
    file.write_text(text)
    assert measured(run, 16, 2, 1) == counted[1]
    assert json.loads(file.read_text()) == asdict(counted[1])


def test_without_a_place_for_the_cache_the_run_goes_on(
    run: Parts,
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
    run: Parts, counted: list[StepTimes]
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
    assert len(counted) == taken  # nothing to choose, nothing measured


def test_executors_are_weighed_by_the_form_that_will_compute(run: Parts) -> None:
    """Where direct convolutions are asked for, a faster step by minimal filtering counts for nobody."""
    times = StepTimes(1.0, 0.8, 0.5, 4, threaded=0.6, workers=2, winograd=0.4)
    forms = [Form("channels_last", "winograd"), Form("channels_last", "direct"), Form("mixed", "direct")]
    assert [times.alone(form) for form in forms] == [0.4, 0.8, 1.0]
    fast, direct, _ = (estimates.estimated_seconds(run.config, run, times, form, 2, 4) for form in forms)
    for name, factor in (("sequential", 2.0), ("threads", 2.0)):
        assert direct[name] == pytest.approx(factor * fast[name])
    assert direct["batched"] < direct["sequential"]
    assert fast["batched"] > fast["sequential"]


@pytest.mark.skipif(not available(), reason="the kernels were not built: no C compiler at installation")
@pytest.mark.parametrize(("executor", "kernels"), [("sequential", "native"), ("batched", "torch")])
def test_kernels_serve_one_client_over_several_threads(executor: str, kernels: str) -> None:
    """A block's convolutions have a kernel that computes on one thread only."""
    run = parts(f"engine.executor={executor}", "engine.threads=2", "engine.kernels=auto")
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
