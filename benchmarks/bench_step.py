"""One training step in the forms that docs/performance.md compares: `python -m benchmarks.bench_step [--model cnn]`.

The malloc setting cannot be undone in a process, so each form runs in a new one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from benchmarks.figures import Figure, options, publish, times
from ssfl.core.layout import Layout
from ssfl.engine.compute.flat_module import FlatModule
from ssfl.engine.compute.fused_layers import native_layers
from ssfl.engine.compute.malloc import keep_freed_memory
from ssfl.models import build_model

KERNELS = (
    "nchw+kept+flat+kernels",
    "last+kept+flat+kernels",
    "mixed+kept+flat+kernels",
    "last+kept+flat+kernels+winograd",
)
FORMS = ("nchw", "nchw+kept", "last", "last+kept", "last+kept+flat", *KERNELS)
QUICK_FORMS = ("nchw", "nchw+kept", "last+kept+flat", "last+kept+flat+kernels+winograd")
COMPILED = "last+kept+flat+compiled"
"""Takes minutes on some machines, so only with --compiled."""
WARM_UP = 3


def step_seconds(form: str, model: str, steps: int) -> list[float]:
    """Seconds of each of `steps` steps (16 images, forward, backward, SGD) on one thread."""
    if "kept" in form:
        keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    norm = "group" if model == "cnn" else "group2"
    net = build_model(model, num_classes=10, input_shape=(3, 32, 32), norm=norm)
    x, y = torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))
    if form.startswith(("last", "mixed")):
        x = x.to(memory_format=torch.channels_last)
    flat = FlatModule(net, Layout.of(net), form == COMPILED) if "flat" in form else None
    forward = net if flat is None else flat.forward
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
    seconds = []
    places = None if flat is None else flat.places
    with native_layers(net, "kernels" in form, form.startswith("mixed"), "winograd" in form, places):
        for _ in range(steps + WARM_UP):
            start = time.perf_counter()
            if flat is None:
                optimiser.zero_grad()
            torch.autograd.backward(cross_entropy(forward(x), y))
            if flat is None:
                optimiser.step()
            else:
                with torch.no_grad():
                    flat.trained.add_(flat.take_gradient(), alpha=-0.05)
            seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:]


def figures(model: str, forms: Sequence[str], steps: int) -> list[Figure]:
    """Median and spread of each form's steps, each in a new process."""
    rows = []
    for form in forms:
        words = ["--model", model, "--steps", str(steps), "--form", form]
        command = [sys.executable, "-m", "benchmarks.bench_step", *words]
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        milliseconds = [1e3 * s for s in json.loads(ended.stdout)]
        rows.append(times(f"{model}: {form}", milliseconds, "ms"))
        rows.append(Figure(f"{model}: {form}, quickest", min(milliseconds), "ms", n=len(milliseconds)))
    return rows


def main() -> None:
    """See README.md in this folder."""
    parser = options(__doc__ or "")
    parser.add_argument("--model", choices=("cnn", "resnet18"), default="cnn")
    parser.add_argument("--steps", type=int, help="default: 60")
    parser.add_argument("--compiled", action="store_true", help="also measure torch.compile")
    parser.add_argument("--form", choices=(*FORMS, COMPILED), help="print this form's seconds, as JSON")
    chosen = parser.parse_args()
    steps = chosen.steps or (20 if chosen.quick else 60)
    if chosen.form is not None:
        print(json.dumps(step_seconds(chosen.form, chosen.model, steps)))
        return
    forms = QUICK_FORMS if chosen.quick else FORMS
    forms = (*forms, COMPILED) if chosen.compiled else forms
    publish(figures(chosen.model, forms, steps), chosen.json)


if __name__ == "__main__":
    main()
