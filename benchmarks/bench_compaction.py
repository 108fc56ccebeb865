"""The gain of exact compaction: training steps of ResNet18 with SSFL's mask, full and compacted, on one thread.

The mask is SSFL's: the global top-k of the saliency |w dL/dw|, averaged over minibatches of ten clients.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.figures import Figure, options, paired_ratio, publish, spread, times
from benchmarks.ours import form_here, our_module
from benchmarks.workload import BATCH_SIZE, LR, ClientArrays, Workload, client_arrays, workload
from ssfl.core.cost import forward_flops, layer_costs
from ssfl.core.layout import Layout
from ssfl.core.masks import kept_count, top_k_mask
from ssfl.core.net import FlatNet
from ssfl.core.saliency import SNIP
from ssfl.engine.compute.arithmetic import channels_last
from ssfl.engine.compute.compaction import Plan, compacted, live_channels, winograd_weights
from ssfl.engine.compute.flat_module import FlatModule
from ssfl.engine.compute.malloc import keep_freed_memory
from ssfl.engine.executors.step_times import Form
from ssfl.native import available

DENSITIES = (0.5, 0.1, 0.05, 0.01)
QUICK_DENSITIES = (0.1,)
SCORING_CLIENTS = 10
WHOLE: Plan = {}
DIRECT = Form("contiguous", "direct")


@dataclass(frozen=True)
class Sparse:
    """A network in flat memory with a mask, and batches for training."""

    flat: FlatModule
    theta: Tensor
    """The masked initial model [P]."""
    mask: Tensor
    """[T], bool."""
    batches: Sequence[tuple[Tensor, Tensor]]
    form: Form = DIRECT
    """How full and compacted convolutions are computed."""

    @contextlib.contextmanager
    def computing(self, plan: Plan) -> Iterator[None]:
        """Inside the block steps compute only the channels that `plan` keeps."""
        winograd = self.form.convolutions == "winograd"
        native = self.flat.theta.dtype == torch.float32
        with (
            compacted(self.flat.module, plan, winograd),
            self.form.kernels(native and available())(self.flat.module),
        ):
            yield

    @property
    def uses_winograd(self) -> Collection[str]:
        """Names of the weights that are Winograd convolutions."""
        return winograd_weights(self.flat.module) if self.form.convolutions == "winograd" else ()

    def step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """One masked SGD step, as in the executors; returns the logits."""
        flat = self.flat
        logits: Tensor = flat.module(batch[0])
        torch.autograd.backward(cross_entropy(logits, batch[1]))
        with torch.no_grad():
            flat.trained.add_(flat.take_gradient().mul_(self.mask), alpha=-LR)
        return logits.detach()

    def trained(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """The first step's logits and the weights [P] after all batches."""
        self.flat.load(self.theta)
        with self.computing(plan):
            logits = [self.step(batch) for batch in self.batches]
        return logits[0], self.flat.theta.clone()

    def double(self) -> Sparse:
        """The same in float64, with the first batch only."""
        module = copy.deepcopy(self.flat.module).double()
        x, y = self.batches[0]
        return Sparse(FlatModule(module, self.flat.layout), self.theta.double(), self.mask, [(x.double(), y)])

    def differences(self, plan: Plan) -> tuple[float, float]:
        """Largest difference of logits and of weights between full and compacted training."""
        pairs = zip(self.trained(WHOLE), self.trained(plan))
        logits, weights = (float((a - b).abs().max()) for a, b in pairs)
        return logits, weights


def ssfl_scores(flat: FlatModule, theta: Tensor, arrays: ClientArrays) -> Tensor:
    """The mean saliency [N] of the prunable weights over the first minibatch of each of ten clients."""
    net = FlatNet(flat.module, flat.layout)
    total = sum(
        SNIP.score(net, theta, (arrays.x[k, :BATCH_SIZE], arrays.y[k, :BATCH_SIZE]))
        for k in range(SCORING_CLIENTS)
    )
    assert isinstance(total, Tensor)
    return flat.layout.take_prunable(total)


def batches_of(arrays: ClientArrays, form: Form) -> list[tuple[Tensor, Tensor]]:
    """A client's whole batches."""
    pairs = zip(torch.split(arrays.x[0], BATCH_SIZE), torch.split(arrays.y[0], BATCH_SIZE))
    whole = [(x, y) for x, y in pairs if len(y) == BATCH_SIZE]
    return whole if form.memory_format == "contiguous" else [(channels_last(x), y) for x, y in whole]


def cut(flat: FlatModule, theta: Tensor, scores: Tensor, density: float) -> tuple[Tensor, Tensor]:
    """theta [P] inside the mask of this density, and the mask [T]."""
    bits = top_k_mask(scores, kept_count(len(scores), density))
    mask = flat.layout.expand_mask(bits)[: flat.layout.trained_size]
    inside = theta.clone()
    inside[: len(mask)] *= mask
    return inside, mask


def in_turns(sparse: Sparse, plan: Plan, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of full and compacted steps, measured alternately, after one unmeasured step of each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    sparse.flat.load(sparse.theta)
    for turn in range(steps + 1):
        for kept, used in zip(seconds, (WHOLE, plan)):
            with sparse.computing(used):
                start = time.perf_counter()
                sparse.step(sparse.batches[turn % len(sparse.batches)])
                kept.append(time.perf_counter() - start)
    return seconds[0][1:], seconds[1][1:]


def products_left(sparse: Sparse, plan: Plan, work: Workload) -> float:
    """Share of a forward pass's multiplications that remain with a plan."""
    costs = layer_costs(sparse.flat.module, work.shape)
    shapes = sparse.flat.layout.views(sparse.mask)
    kept = {
        name: len(live.filters) * len(live.columns) * shapes[name][0, 0].numel()
        for name, live in plan.items()
    }
    return forward_flops(costs, kept) / forward_flops(costs)


def rows_at(sparse: Sparse, name: str, steps: int, work: Workload) -> list[Figure]:
    """Step times, their ratio, remaining multiplications, time to make the plan, and differences of results."""
    start = time.perf_counter()
    plan = live_channels(sparse.flat.layout, sparse.mask, uses_winograd=sparse.uses_winograd)
    planning = time.perf_counter() - start
    whole, small = in_turns(sparse, plan, steps)
    ratios = [a / b for a, b in zip(whole, small)]
    logits, weights = sparse.differences(plan)
    exact = max(sparse.double().differences(plan))
    row = times(f"{name}: compacted step", small)
    return [
        times(f"{name}: whole step", whole),
        Figure(row.name, row.value, "s", "whole step", paired_ratio(small, whole), row.n, row.spread),
        Figure(f"{name}: gain", paired_ratio(small, whole), "times", n=len(ratios), spread=spread(ratios)),
        Figure(f"{name}: products left", products_left(sparse, plan, work), "share"),
        Figure(f"{name}: making the plan, once a client", planning, "s"),
        Figure(f"{name}: largest difference of outputs", logits, "logit"),
        Figure(f"{name}: largest difference of weights, {len(sparse.batches)} steps", weights, "weight"),
        Figure(f"{name}: largest difference in float64, 1 step", exact, "logit or weight"),
    ]


def figures(model: str, densities: Sequence[float], steps: int) -> list[Figure]:
    """All densities of one network, with direct convolutions and, if the kernels were built, Winograd convolutions."""
    work = workload(model)
    arrays, module = client_arrays(work), our_module(work)
    forms = {"": form_here(work, module, "direct")}
    if available():
        forms[", Winograd"] = Form("channels_last", "winograd")
    flat = FlatModule(module.train(), Layout.of(module))
    theta = flat.theta.clone()
    scores = ssfl_scores(flat, theta, arrays)
    rows: list[Figure] = []
    for density in densities:
        for label, form in forms.items():
            sparse = Sparse(flat, *cut(flat, theta, scores, density), batches_of(arrays, form), form)
            rows += rows_at(sparse, f"density {density}{label}", steps, work)
    return rows


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = options(__doc__ or "")
    parser.add_argument("--model", choices=("resnet18", "cnn"), default="resnet18")
    parser.add_argument("--steps", type=int, help="steps of each form at each density (default: 30)")
    parser.add_argument("--densities", type=float, nargs="+", help="default: 0.5 0.1 0.05 0.01")
    return parser


def main() -> None:
    """See README.md in this folder."""
    chosen = parser().parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    steps = chosen.steps or (6 if chosen.quick else 30)
    densities = chosen.densities or (QUICK_DENSITIES if chosen.quick else DENSITIES)
    publish(figures(chosen.model, densities, steps), chosen.json)


if __name__ == "__main__":
    main()
