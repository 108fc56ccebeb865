"""One training step in the forms that docs/performance.md compares: `python -m benchmarks.bench_step [--model cnn]`.

Memory kept (mallopt) cannot be undone in a process, so that each form runs in one of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import torch
from torch.nn.functional import cross_entropy

from ssfl.core.layout import Layout
from ssfl.engine.flat_module import FlatModule
from ssfl.engine.memory import keep_freed_memory
from ssfl.engine.native_layers import native_layers
from ssfl.models import build_model

KERNELS = (
    "nchw+kept+flat+kernels",
    "last+kept+flat+kernels",
    "mixed+kept+flat+kernels",
    "last+kept+flat+kernels+winograd",
)
FORMS = ("nchw", "nchw+kept", "last", "last+kept", "last+kept+flat", *KERNELS)
COMPILED = "last+kept+flat+compiled"
"""Minutes on some machines: only with --compiled."""
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
    with native_layers(net, "kernels" in form, form.startswith("mixed"), "winograd" in form):
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


def main() -> None:
    """Print the median and the quickest step of each form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("cnn", "resnet18"), default="cnn")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--compiled", action="store_true", help="torch.compile as a further form")
    parser.add_argument("--form", choices=(*FORMS, COMPILED), help="this form only, in this process")
    arguments = parser.parse_args()
    if arguments.form is None:
        words = ["--model", arguments.model, "--steps", str(arguments.steps)]
        for form in (*FORMS, COMPILED) if arguments.compiled else FORMS:
            subprocess.run(
                [sys.executable, "-m", "benchmarks.bench_step", *words, "--form", form], check=True
            )
        return
    seconds = step_seconds(arguments.form, arguments.model, arguments.steps)
    median = 1e3 * statistics.median(seconds)
    print(
        f"{arguments.model} {arguments.form:31} median {median:.1f} ms, quickest {1e3 * min(seconds):.1f} ms"
    )


if __name__ == "__main__":
    main()
