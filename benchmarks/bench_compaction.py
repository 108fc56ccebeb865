"""What exact compaction gains: a training step of ResNet18 under SSFL's mask, whole and compacted in turns, one thread.

The mask is the method's own: the global top-k of the saliency |w dL/dw|, averaged over minibatches of ten clients.
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
from ssfl.core.saliency import snip
from ssfl.engine.arithmetic import channels_last
from ssfl.engine.calibrate import Form
from ssfl.engine.compaction import Plan, compacted, filtered_weights, live_channels
from ssfl.engine.flat_module import FlatModule
from ssfl.engine.memory import keep_freed_memory
from ssfl.native import available

DENSITIES = (0.5, 0.1, 0.05, 0.01)
QUICK_DENSITIES = (0.1, 0.01)
SCORING_CLIENTS = 10
WHOLE: Plan = {}
DIRECT = Form("contiguous", "direct")


@dataclass(frozen=True)
class Sparse:
    """A network in flat memory inside a mask, and batches to train it on."""

    flat: FlatModule
    theta: Tensor
    """The masked initial model [P]."""
    mask: Tensor
    """[T], bool."""
    batches: Sequence[tuple[Tensor, Tensor]]
    form: Form = DIRECT
    """How convolutions are computed, whole and compacted."""

    @contextlib.contextmanager
    def computing(self, plan: Plan) -> Iterator[None]:
        """Within: steps leave out what `plan` does not name."""
        winograd = self.form.convolutions == "winograd"
        native = self.flat.theta.dtype == torch.float32
        with (
            compacted(self.flat.module, plan, winograd),
            self.form.kernels(native and available())(self.flat.module),
        ):
            yield

    @property
    def filtered(self) -> Collection[str]:
        """Names of the weights that are computed by minimal filtering."""
        return filtered_weights(self.flat.module) if self.form.convolutions == "winograd" else ()

    def step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """One masked SGD step, as the executors do it; the logits."""
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
        """The same in float64, with the first batch alone."""
        module = copy.deepcopy(self.flat.module).double()
        x, y = self.batches[0]
        return Sparse(FlatModule(module, self.flat.layout), self.theta.double(), self.mask, [(x.double(), y)])

    def differences(self, plan: Plan) -> tuple[float, float]:
        """Largest difference of logits and of weights between whole and compacted training."""
        pairs = zip(self.trained(WHOLE), self.trained(plan))
        logits, weights = (float((a - b).abs().max()) for a, b in pairs)
        return logits, weights


def ssfl_scores(flat: FlatModule, theta: Tensor, arrays: ClientArrays) -> Tensor:
    """The mean saliency [N] of the prunable weights over the first minibatch of each of ten clients."""
    net = FlatNet(flat.module, flat.layout)
    total = sum(
        snip(net, theta, (arrays.x[k, :BATCH_SIZE], arrays.y[k, :BATCH_SIZE])) for k in range(SCORING_CLIENTS)
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
    """Seconds of whole and of compacted steps, one of each in turns, after one of each unmeasured."""
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
    """Share of the multiplications of a forward pass that a plan leaves."""
    costs = layer_costs(sparse.flat.module, work.shape)
    shapes = sparse.flat.layout.views(sparse.mask)
    kept = {
        name: len(live.filters) * len(live.columns) * shapes[name][0, 0].numel()
        for name, live in plan.items()
    }
    return forward_flops(costs, kept) / forward_flops(costs)


def rows_at(sparse: Sparse, name: str, steps: int, work: Workload) -> list[Figure]:
    """Step times, their ratio, what is left to multiply, what making the plan takes, and how equal results are."""
    start = time.perf_counter()
    plan = live_channels(sparse.flat.layout, sparse.mask, filtered=sparse.filtered)
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
    """All densities of one network, with direct convolutions and, where they are built, by minimal filtering."""
    work = workload(model)
    arrays, module = client_arrays(work), our_module(work)
    forms = {"": form_here(work, module, "direct")}
    if available():
        forms[", minimal filtering"] = Form("channels_last", "winograd")
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
