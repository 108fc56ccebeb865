"""A run in time slices: it stops cleanly after its time, prints how to resume, and continues with the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from ssfl.algorithms.base import Clock
from ssfl.assemble import lifecycle
from ssfl.assemble.time_slices import SliceEnd, ending
from ssfl.config import load_config
from ssfl.engine.accounting.ledger import Ledger
from ssfl.engine.state.progress import Progress
from ssfl.report.runs import load_run

WORDS = [
    "preset=digits",
    "training.comm_round=3",
    "training.epochs=1",
    "training.client_num_in_total=4",
    "training.client_num_per_round=2",
    "engine.executor=sequential",
    "engine.memory_format=contiguous",
    "engine.block=1",
    "engine.device=cpu",
    "tracking.console=quiet",
]


def progress(round_: int) -> Progress:
    return Progress(None, Clock(round_, 5), None, Ledger())


def test_the_first_exchange_past_the_time_ends_the_slice() -> None:
    times, saved = iter([100.0, 109.0, 110.0, 500.0]), []

    def save(progress: Progress) -> float:
        saved.append(progress.clock.round)
        return 0.25

    sliced = ending(save, 10.0, lambda: next(times))
    assert sliced(progress(2)) == 0.25
    with pytest.raises(SliceEnd, match="stop_after_seconds=10 have passed") as end:
        sliced(progress(3))
    assert end.value.progress.clock.round == 3
    assert sliced(progress(6)) == 0.25  # all five rounds are done: the run continues to its end
    assert saved == [2, 3, 6]
    assert ending(save, 0.0) is save


def test_slices_give_the_bits_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A very short slice ends after every exchange, so the run stops as often as possible."""
    folders = []
    for name, seconds in (("whole", 0), ("sliced", 1e-9)):
        place = [f"experiment.output_dir={tmp_path}", f"wandb.exp_name={name}"]
        config = load_config([*WORDS, *place, f"checkpoint.stop_after_seconds={seconds}"])
        assert lifecycle.run(config) == 0
        (folder,) = (tmp_path / name).iterdir()
        folders.append(folder)
    sliced = folders[1]
    assert f"continue with: ssfl resume {sliced}" in capsys.readouterr().err
    for _ in range(10):
        if load_run(sliced).finished:
            break
        assert lifecycle.resume(sliced) == 0
    one, many = (load_file(f / "model.safetensors") for f in folders)
    assert one.keys() == many.keys()
    assert all(one[name].equal(many[name]) for name in one)
    losses = [[row.get("global_loss") for row in load_run(f).exchanges] for f in folders]
    assert losses[0] == losses[1]
