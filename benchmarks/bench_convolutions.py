"""3x3 convolutions: the library's and our Winograd convolutions, measured alternately, with errors against float64."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.figures import Figure, options, paired_ratio, publish, times
from ssfl.engine.compute.malloc import keep_freed_memory
from ssfl.native import available
from ssfl.native.winograd import winograd_conv

IMAGES = 16
PARTS = ("outputs", "gradients of images", "gradients of filters")
LAYERS = (
    *((32, 64, 16, 1), (64, 64, 8, 1)),
    *((64, 64, 32, 1), (128, 128, 16, 1), (256, 256, 8, 1), (512, 512, 4, 1)),
    *((64, 128, 32, 2), (128, 256, 16, 2), (256, 512, 8, 2)),
)
"""Channels in and out, side of the images' map, stride: layers of the small CNN, then of ResNet18."""


@dataclass(frozen=True)
class Layer:
    """Images with channels last, filters, and the gradient of the outputs."""

    x: Tensor
    filters: Tensor
    dy: Tensor
    stride: int

    @classmethod
    def drawn(cls, inner: int, out: int, side: int, stride: int) -> Layer:
        """Normal values; filters scaled as after initialisation."""
        generator = torch.Generator().manual_seed(0)
        outputs = (IMAGES, out, side // stride, side // stride)
        shapes = ((IMAGES, inner, side, side), (out, inner, 3, 3), outputs)
        x, filters, dy = (torch.randn(shape, generator=generator) for shape in shapes)
        x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
        return cls(x, filters / (9 * inner) ** 0.5, dy, stride)

    def double(self) -> Layer:
        """The same in float64."""
        return Layer(self.x.double(), self.filters.double(), self.dy.double(), self.stride)

    def library(self) -> Mapping[str, Callable[[], Tensor]]:
        """Each part with PyTorch."""

        def gradients(images: bool) -> Tensor:
            found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
                *(self.dy, self.x, self.filters, None, [self.stride] * 2, [1, 1], [1, 1], False, [0, 0], 1),
                [images, not images, False],
            )
            return found[0] if images else found[1]

        outputs = lambda: torch.nn.functional.conv2d(self.x, self.filters, None, self.stride, padding=1)
        return dict(zip(PARTS, (outputs, lambda: gradients(True), lambda: gradients(False)), strict=True))

    def ours(self) -> Mapping[str, Callable[[], Tensor]]:
        """Each part with Winograd convolution."""
        x, filters = self.x.clone().requires_grad_(), self.filters.clone().requires_grad_()
        convolve = partial(winograd_conv, stride=self.stride)
        from_images, from_filters = convolve(x, self.filters), convolve(self.x, filters)

        def gradient(y: Tensor, leaf: Tensor) -> Tensor:
            return torch.autograd.grad(y, leaf, self.dy, retain_graph=True)[0]

        calls = (
            lambda: convolve(self.x, self.filters),
            lambda: gradient(from_images, x),
            lambda: gradient(from_filters, filters),
        )
        return dict(zip(PARTS, calls, strict=True))


def seconds(call: Callable[[], Tensor]) -> float:
    """Of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def figures(turns: int) -> list[Figure]:
    """Milliseconds of both, the ratio, and the error of each against float64, relative to the norm."""
    rows = []
    for inner, out, side, stride in LAYERS:
        layer = Layer.drawn(inner, out, side, stride)
        exact, library, ours = layer.double().library(), layer.library(), layer.ours()
        for part in PARTS:
            pairs = [(seconds(library[part]), seconds(ours[part])) for _ in range(turns + 1)][1:]
            theirs, mine = ([pair[which] for pair in pairs] for which in (0, 1))
            strided = f", stride {stride}" if stride > 1 else ""
            name = f"{inner} to {out} channels, {side}x{side}{strided}, {part}"
            row = times(f"{name}: ours", mine)
            ratio = paired_ratio(mine, theirs)
            rows.append(Figure(f"{name}: library", 1e3 * statistics.median(theirs), "ms", n=turns))
            rows.append(Figure(row.name, 1e3 * row.value, "ms", "library", ratio, row.n, 1e3 * row.spread))
            wanted = exact[part]()
            for who, call in (("library", library[part]), ("ours", ours[part])):
                error = float((call() - wanted).norm() / wanted.norm())
                rows.append(Figure(f"{name}: error, {who}", error, "of the norm"))
    return rows


def main() -> None:
    """See README.md in this folder."""
    parser = options(__doc__ or "")
    parser.add_argument("--turns", type=int, help="default: 30")
    chosen = parser.parse_args()
    if not available():
        raise SystemExit("bench_convolutions: the kernels were not built; see docs/engine.md")
    keep_freed_memory()
    torch.set_num_threads(1)
    publish(figures(chosen.turns or (5 if chosen.quick else 30)), chosen.json)


if __name__ == "__main__":
    main()
