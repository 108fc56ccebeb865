"""Configuration to objects: values reach the right fields, seeds determine results, errors are one line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from ssfl.algorithms.base import Probe
from ssfl.algorithms.dispfl import DisPFL
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.local_training import LocalTraining
from ssfl.algorithms.random_masks import ClientwiseRandomMask, SharedRandomMask
from ssfl.algorithms.sparsyfed import SparsyFed
from ssfl.algorithms.ssfl import SSFL
from ssfl.algorithms.table import METHODS as TABLE
from ssfl.assemble.build import algorithm_of, fine_tune_schedule, fit_of, schedule_of, setup_of
from ssfl.config import ConfigError
from ssfl.core.layout import Layout
from ssfl.core.saliency import SNIP, SNIP_RAW_LOGITS
from tests.support.assembled import config, run_setup


# ── data and network ─────────────────────────────────────────────────────────────────────────────────────────────
def test_parts_fit_together() -> None:
    run = run_setup()
    assert run.federation.num_clients == 4
    assert sum(run.context.example_counts.values()) == len(run.federation.arrays.train_y)
    assert run.context.clients == [0, 1, 2, 3]
    assert run.context.seed == run.config.experiment.seed
    assert run.theta.numel() == sum(p.numel() for p in run.module.parameters())
    assert run.module(torch.zeros(2, *run.federation.input_shape)).shape == (2, 10)


def test_the_initial_model_is_a_function_of_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = run_setup("experiment.seed=5")
    torch.manual_seed(2)
    drawn = torch.get_rng_state()
    again, other = run_setup("experiment.seed=5"), run_setup("experiment.seed=6")
    assert torch.get_rng_state().equal(drawn)
    assert first.theta.equal(again.theta)
    assert not first.theta.equal(other.theta)
    for one, two in zip(first.federation.train_parts, again.federation.train_parts, strict=True):
        assert one.equal(two)


def test_the_initial_model_is_pytorchs_own_initialisation() -> None:
    run = run_setup("experiment.seed=5", "model.name=mlp")
    torch.manual_seed(5)
    module = type(run.module)((1, 8, 8), 10, _hidden(run.module))  # type: ignore[call-arg]
    assert Layout.of(module).flatten(module).equal(run.theta)


def _hidden(module: torch.nn.Module) -> tuple[int, ...]:
    linear = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
    return tuple(m.out_features for m in linear[:-1])


# ── local training ───────────────────────────────────────────────────────────────────────────────────────────────
def test_local_training_as_configured() -> None:
    words = (
        "optimizer.momentum=0.8",
        "optimizer.wd=0.003",
        "optimizer.clip_norm=2.5",
        "training.batch_size=7",
    )
    fit = fit_of(config(*words, "training.epochs=3"))
    assert (fit.epochs, fit.batch_size, fit.momentum) == (3, 7, 0.8)
    assert (fit.weight_decay, fit.clip_norm) == (0.003, 2.5)
    assert fit_of(config("optimizer.clip_norm=0")).clip_norm is None
    assert fit_of(config(), epochs=9).epochs == 9


def test_schedules_by_their_formulas() -> None:
    decayed = schedule_of(config("optimizer.lr=0.2", "optimizer.lr_decay=0.9"))
    assert decayed(3, 0) == decayed(3, 7) == pytest.approx(0.2 * 0.9**3)
    restarts = schedule_of(
        config("optimizer.scheduler=cosine_annealing", "optimizer.scheduler_cycle_len=4", "optimizer.lr=0.2")
    )
    half = 1e-5 + (0.2 - 1e-5) * (1 + math.cos(math.pi / 2)) / 2
    assert restarts(1, 2) == restarts(50, 2) == restarts(1, 6) == pytest.approx(half)
    words = ("optimizer.scheduler=geometric", "optimizer.lr=0.4", "optimizer.final_lr=0.1")
    geometric = schedule_of(config("algorithm=sparsyfed", *words, "training.comm_round=9"))
    assert geometric(9, 0) == pytest.approx(0.1)
    ratios = [geometric(r + 1, 0) / geometric(r, 0) for r in range(1, 9)]
    assert ratios == pytest.approx([ratios[0]] * 8)


def test_fine_tuning_starts_from_the_initial_rate() -> None:
    run = config(
        "algorithm=fedavg_ft", "optimizer.lr=0.2", "optimizer.lr_decay=0.5", "training.fine_tune_epochs=6"
    )
    assert fine_tune_schedule(run)(40, 1) == 0.2
    method = algorithm_of(run, run_setup().layout)
    assert isinstance(method, FedAvg)
    assert method.fine_tune is not None
    assert method.fine_tune.epochs == 6
    own = config("algorithm=fedavg_ft", "optimizer.lr=0.2", "optimizer.fine_tune_lr=0.003")
    assert [fine_tune_schedule(own)(round, 0) for round in (1, 40)] == [0.003, 0.003]
    assert schedule_of(own)(1, 0) == 0.2 * 0.998


# ── methods ──────────────────────────────────────────────────────────────────────────────────────────────────────
METHODS: Mapping[str, tuple[tuple[str, ...], type[Any]]] = {
    "ssfl": ((), SSFL),
    "ssfl random_global": (("algorithm.params.mode=random_global",), SharedRandomMask),
    "ssfl random_layerwise": (("algorithm.params.mode=random_layerwise",), SharedRandomMask),
    "ssfl random_clientwise": (("algorithm.params.mode=random_clientwise",), ClientwiseRandomMask),
    "fedavg": (("algorithm=fedavg",), FedAvg),
    "fedavg_ft": (("algorithm=fedavg_ft",), FedAvg),
    "dispfl": (("algorithm=dispfl",), DisPFL),
    "sparsyfed": (("algorithm=sparsyfed",), SparsyFed),
    "local": (("algorithm=local",), LocalTraining),
}


def test_every_method_has_a_row_here() -> None:
    assert {name.split()[0] for name in METHODS} == set(TABLE)


@pytest.mark.parametrize("name", list(METHODS))
def test_names_give_their_methods(name: str) -> None:
    words, kind = METHODS[name]
    sparse = kind not in (FedAvg, LocalTraining)  # dense methods would warn that they ignore the density
    run = run_setup(*words, *(["model.dense_ratio=0.3"] if sparse else []))
    assert type(run.algorithm) is kind
    assert run.algorithm.initialize(run.theta, run.context) is not None
    part = run.algorithm.discovery if isinstance(run.algorithm, SSFL) else run.algorithm
    assert getattr(part, "density", 0.3) == 0.3
    assert hasattr(part, "density") == sparse


def test_the_cohort_reaches_the_method() -> None:
    layout = run_setup().layout
    assert algorithm_of(config("algorithm=fedavg"), layout).per_round == 2  # type: ignore[attr-defined]
    fair, all_of_them = (
        algorithm_of(config("algorithm=dispfl", f"algorithm.params.fair_budget={b}"), layout)
        for b in ("true", "false")
    )
    assert isinstance(fair, DisPFL)
    assert isinstance(all_of_them, DisPFL)
    assert (fair.per_round, all_of_them.per_round) == (2, None)
    assert fair.neighbour_count == 2  # as many as the cohort by default
    algorithm = algorithm_of(config("algorithm=dispfl", "algorithm.params.neighbours=3"), layout)
    assert isinstance(algorithm, DisPFL)
    assert algorithm.neighbour_count == 3


def test_dispfls_first_round_trains_at_the_full_learning_rate() -> None:
    """DisPFL: lr * decay ** r with r from 0; the loops of SSFL and FedAvg count from 1."""
    layout = run_setup().layout
    words = ("optimizer.lr=0.1", "optimizer.lr_decay=0.5")
    dispfl = algorithm_of(config("algorithm=dispfl", *words), layout)
    fedavg = algorithm_of(config("algorithm=fedavg", *words), layout)
    assert isinstance(dispfl, DisPFL)
    assert isinstance(fedavg, FedAvg)
    assert [dispfl.fit.schedule(r, 0) for r in (1, 2, 3)] == [0.1, 0.05, 0.025]
    assert [fedavg.fit.schedule(r, 0) for r in (1, 2, 3)] == [0.05, 0.025, 0.0125]
    geometric = algorithm_of(config("algorithm=dispfl", "optimizer.scheduler=geometric"), layout)
    assert isinstance(geometric, DisPFL)
    assert geometric.fit.schedule == schedule_of(config("optimizer.scheduler=geometric"))


def test_the_score_and_when_it_is_taken() -> None:
    layout = run_setup().layout
    words = (
        "model.itersnip_iteration=4",
        "algorithm.params.weighting=uniform",
        "training.batch_size=9",
        "training.comm_round=9",
    )
    method = algorithm_of(config(*words, "algorithm.params.warmup_rounds=3"), layout)
    assert isinstance(method, SSFL)
    probe = method.discovery.probe
    assert probe == Probe(SNIP, 4, 9)
    assert not SNIP.training_mode
    assert method.discovery.weighting == "uniform"
    assert method.mask_round == 3
    other = algorithm_of(config("algorithm.params.method=ssfl_aux"), layout)
    assert isinstance(other, SSFL)
    assert other.discovery.probe.saliency is SNIP_RAW_LOGITS
    assert SNIP_RAW_LOGITS.training_mode
    early = algorithm_of(config("algorithm.params.initial_mask_freq=1"), layout)
    assert isinstance(early, SSFL)
    assert early.mask_round == 1


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("model.dense_ratio=1e-9",),
            "model.dense_ratio=1e-09: at least 3.5e-05, one of the 28960 prunable weights",
        ),
        (("model.dense_ratio=4e-5", "algorithm.params.min_layer_density=1e-5"), "not 3"),
    ],
)
def test_what_the_network_cannot_bear_is_refused(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        run_setup(*words)
    message = str(refusal.value)
    assert says in message
    assert "\n" not in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="PyTorch sees no CUDA device here"):
        setup_of(config("engine.device=cuda"))
