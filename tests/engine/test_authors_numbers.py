"""The authors' own numbers (tests/oracles/README.md), replayed through algorithm, runner, simulator and loop."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssfl.algorithms.base import Clock, Probe, RoundPlan
from ssfl.algorithms.masked import MaskedState
from ssfl.algorithms.ssfl import SSFL, Discovery, ScoreWeighting
from ssfl.core.masks import kept_count, top_k_mask
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.payloads import SCORES, Payload, Support, dense_values
from ssfl.core.saliency import SALIENCIES
from ssfl.engine.client import runner as runner_module
from ssfl.engine.client.job import ClientJob
from ssfl.engine.client.memory import ClientMemory
from ssfl.engine.client.step import Update, sgd
from tests.support.rigs import FloatData, Rig, make_rig, make_runner

FOLDER = Path(__file__).resolve().parent.parent / "oracles"
SETTINGS: dict[str, Any] = json.loads((FOLDER / "ssfl.json").read_text())
COMMON = SETTINGS["common_hyper"]
CLIENTS = range(COMMON["clients"])
RUNS = ("d50_m0_c10", "d50_m9_c05")
WEIGHT_TOLERANCE, LOSS_TOLERANCE, SCORE_TOLERANCE = 5e-6, 2e-6, 1e-6


class AuthorsNet(nn.Module):
    """The small network of the authors' numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.gn1 = nn.GroupNorm(4, 8)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.gn2 = nn.GroupNorm(4, 16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.gn1(self.conv1(x))), 2)
        x = torch.relu(self.gn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


@cache
def arrays() -> dict[str, Tensor]:
    with np.load(FOLDER / "ssfl.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@dataclass(frozen=True)
class AuthorsOrder:
    """The explicit batches, as a custom batch order."""

    def epoch(self, client: int, round: int, epoch: int, examples: int) -> Tensor:
        return arrays()[f"sched/r{round}_e{epoch}_c{client}"]

    def probe(self, client: int, round: int, index: int, examples: int, batch_size: int) -> Tensor:
        return arrays()[f"sal/idx_c{client}"]


def federated_data() -> FloatData:
    got = arrays()
    return FloatData(
        tuple((got[f"data/x_c{c}"], got[f"data/y_c{c}"]) for c in CLIENTS),
        tuple((got[f"test/x_c{c}"], got[f"test/y_c{c}"]) for c in CLIENTS),
        10,
    )


def algorithm(run: str, weighting: ScoreWeighting = "uniform", density: float = 0.5) -> SSFL:
    hyper = SETTINGS["runs"][run]["hyper"]
    fit = FitSpec(
        COMMON["local_epochs"],
        COMMON["batch_size"],
        ExponentialDecay(COMMON["lr"], COMMON["lr_decay"]),
        momentum=hyper["momentum"],
        weight_decay=COMMON["weight_decay"],
        clip_norm=hyper["clip"],
    )
    probe = Probe(SALIENCIES["ssfl"], 1, COMMON["batch_size"])
    return SSFL(fit, len(CLIENTS), Discovery(probe, density, weighting, ties="keep"))


def rig(method: SSFL, wire: bool = False) -> Rig:
    made = make_rig(
        method, federated_data(), AuthorsNet(), wire=wire, dtype=torch.float32, order=AuthorsOrder()
    )
    return replace(made, theta=arrays()["init"])


@cache
def finished(run: str) -> Rig:
    made = rig(algorithm(run))
    made.run(3)
    return made


def step_by_step(run: str) -> list[Tensor]:
    """Global weights after each round."""
    made = rig(algorithm(run), wire=True)
    progress = made.loop.start(made.theta, 3)
    out: list[Tensor] = []
    plan: RoundPlan | None = made.plan(progress.state, progress.clock)
    while plan is not None:
        timed = plan.timed
        progress, plan = made.loop.step(progress, plan)
        if timed:
            out.append(progress.state.theta)
    return out


def test_layout_is_theirs() -> None:
    layout = rig(algorithm(RUNS[0])).context.layout
    theirs = SETTINGS["small_net"]
    assert layout.names == tuple(p["name"] for p in theirs["param_order"])
    assert layout.offsets == tuple(p["offset"] for p in theirs["param_order"])
    assert layout.prunable_segments == tuple(
        (p["name"], p["offset"], p["offset"] + p["size"]) for p in theirs["maskable_order"]
    )
    assert (layout.size, layout.prunable_size) == (theirs["n_params"], theirs["n_maskable"])


@pytest.mark.parametrize("client", CLIENTS)
def test_scores(client: int) -> None:
    plan, replies = finished(RUNS[0]).recorder.passed[0]
    assert plan.phase == "score"
    ours = dense_values(replies[client].payload.parts[SCORES])
    theirs = arrays()[f"scores/ssfl/c{client}"]
    assert float((ours - theirs).abs().max()) <= SCORE_TOLERANCE * float(theirs.max())


@pytest.mark.parametrize(
    ("weighting", "density", "name"),
    [
        ("uniform", 0.5, "ssfl_uniform/d50"),
        ("examples", 0.5, "ssfl_pk/d50"),
        ("uniform", 0.2, "ssfl_uniform/d20"),
    ],
)
def test_masks_at_the_first_exchange(weighting: ScoreWeighting, density: float, name: str) -> None:
    made = rig(algorithm(RUNS[0], weighting, density))
    state: MaskedState = made.step(made.loop.start(made.theta, 1)).state
    assert state.bits is not None
    assert state.bits.equal(arrays()[f"masks/{name}"].bool())


@pytest.mark.parametrize("case", SETTINGS["tie_cases"], ids=lambda c: f"{c['case']}-{c['density']}")
def test_tie_rule(case: dict[str, Any]) -> None:
    scores = torch.tensor(case["scores"], dtype=torch.float32)
    keep = kept_count(len(scores), case["density"])
    assert keep == case["keep"]
    assert top_k_mask(scores, keep, "keep").tolist() == [bool(b) for b in case["mask"]]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("client", CLIENTS)
def test_client_states_after_round_1(run: str, client: int) -> None:
    made = finished(run)
    plan, replies = next((p, r) for p, r in made.recorder.passed if p.phase == "train")
    assert plan.clock.round == 1
    support = Support.of(made.context.layout.expand_mask(arrays()[f"run/{run}/mask"].bool()))
    ours = support.unpack(replies[client].payload.parts["w"])
    assert float((ours - arrays()[f"run/{run}/r1_c{client}"]).abs().max()) <= WEIGHT_TOLERANCE


@pytest.mark.parametrize("run", RUNS)
def test_global_weights_of_three_rounds(run: str) -> None:
    for number, ours in enumerate(step_by_step(run), start=1):
        theirs = arrays()[f"run/{run}/global_r{number}"]
        assert float((ours - theirs).abs().max()) <= WEIGHT_TOLERANCE, f"round {number}"


@pytest.mark.parametrize("run", RUNS)
def test_losses_accuracies_and_densities(run: str) -> None:
    made = finished(run)
    info = SETTINGS["runs"][run]["info"]
    shown = [e for e in made.events if e["event"] == "round"]
    trained = [replies for plan, replies in made.recorder.passed if plan.phase == "train"]
    found = next(e for e in made.events if "layer_density" in e)
    for number, event in enumerate(shown, start=1):
        theirs = info[f"eval_r{number}"]
        assert event["global_accuracy"] == pytest.approx(theirs["global_acc"])
        assert event["global_loss"] == pytest.approx(theirs["global_loss_mean"], abs=LOSS_TOLERANCE)
        assert event["client_accuracy"] == pytest.approx(theirs["local_acc"])
        assert event["client_accuracy_mean"] == pytest.approx(theirs["local_acc_mean"])
        assert event["client_accuracy_std"] == pytest.approx(theirs["local_acc_std"])
        hits = {int(k): v[0] / v[1] for k, v in theirs["per_class_correct_total"].items()}
        assert event["global_class_accuracy"] == pytest.approx([hits[c] for c in range(10)])
        tests = [r.report.tallies["trained"] for r in trained[number - 1]]
        sums = [t.loss_sum for t in tests]
        # The authors' training loss is a mean of batch means over all epochs; ours is over the last epoch's examples.
        assert sums == pytest.approx(theirs["local_loss_sum"], rel=LOSS_TOLERANCE)
        assert [int(t.correct.sum()) for t in tests] == theirs["local_correct"]
    for layer, density in found["layer_density"].items():
        sparsity = info["r1_c0"]["sparsity_pct"][f"sparsity_actual/{layer}"]
        assert 100 * (1 - density) == pytest.approx(sparsity)


@pytest.mark.parametrize("run", RUNS)
def test_gradient_norms_before_clipping(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient that the engine's update receives: masked, not yet clipped."""
    method, made, norms = algorithm(run), finished(run), list[float]()

    def noting(spec: FitSpec, lr: float) -> Update:
        def update(theta: Tensor, gradient: Tensor, velocity: Tensor | None) -> None:
            norms.append(float(gradient.double().norm()))
            sgd(spec, lr)(theta, gradient, velocity)

        return update

    monkeypatch.setattr(runner_module, "sgd", noting)
    task = method.tasks["train"]
    runner = make_runner(
        federated_data(), AuthorsNet(), {"train": task}, dtype=torch.float32, order=AuthorsOrder()
    )
    bits = arrays()[f"run/{run}/mask"].bool()
    support = Support.of(runner.layout.expand_mask(bits))
    cut = made.theta * support.mask
    for client in CLIENTS:
        norms.clear()
        inbox = (Payload({"w": support.pack(cut)}),)
        job = ClientJob("train", client, inbox, Clock(1, 3), ClientMemory({"mask": bits}))
        runner.run(job)
        theirs = arrays()[f"run/{run}/gradnorm_r1_c{client}"].tolist()
        assert norms == pytest.approx(theirs, rel=1e-4)
