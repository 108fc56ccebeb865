"""The compiled functions: they take addresses and write their results there. The Python wrappers check the arguments.

usable, used, use: instruction sets (library.py). threads: the most threads of one call; the bits do not
depend on it (parallel.h).
"""

from __future__ import annotations

NormShape = tuple[int, int, int, int, int, bool, bool, bool, float]
"""images, channels, height, width, groups, last, pool, relu, eps."""
ConvShape = tuple[int, int, int, int, int, int]
"""images, groups, channels in and out of one group, height, width."""
WinogradShape = tuple[int, int, int, int, int, int]
"""images, channels in and out, height, width, stride."""
BatchShape = tuple[int, int, int, int, int, bool]
"""images, channels, height, width, padding, last."""
SliceShape = tuple[int, int, int]
"""rows, columns, values of each."""

def usable() -> tuple[str, ...]: ...
def used() -> str: ...
def use(name: str, /) -> None: ...
def norm_forward(
    shape: NormShape,
    threads: int,
    x: int,
    bias: int,
    residual: int,
    gamma: int,
    beta: int,
    y: int,
    chosen: int,
    statistics: int,
    /,
) -> None: ...
def norm_backward(
    shape: NormShape,
    threads: int,
    dy: int,
    x: int,
    y: int,
    chosen: int,
    bias: int,
    gamma: int,
    statistics: int,
    dx: int,
    dresidual: int,
    parameters: int,
    /,
) -> None: ...
def conv_forward(shape: ConvShape, x: int, filters: int, y: int, /) -> None: ...
def conv_backward(shape: ConvShape, dy: int, x: int, filters: int, dx: int, dfilters: int, /) -> None: ...
def winograd(
    shape: WinogradShape,
    threads: int,
    least: float,
    x: int,
    filters: int,
    bias: int,
    dy: int,
    y: int,
    dx: int,
    dfilters: int,
    /,
) -> None: ...
def expand(mask: int, size: int, values: int, kept: int, out: int, threads: int, /) -> int: ...
def pack(mask: int, size: int, values: int, kept: int, out: int, /) -> None: ...
def multiply_by_mask(mask: int, size: int, values: int, threads: int, /) -> None: ...
def weighted_sum(vectors: int, weights: int, count: int, size: int, out: int, threads: int, /) -> None: ...
def select_largest(values: int, segments: int, count: int, out: int, /) -> bool: ...
def gather(
    shape: BatchShape,
    images: int,
    floats: bool,
    rows: int,
    offsets: int,
    flips: int,
    source: int,
    first: int,
    second: int,
    out: int,
    /,
) -> None: ...
def gather_slices(
    shape: SliceShape,
    rows: int,
    rows_chosen: int,
    columns: int,
    columns_chosen: int,
    x: int,
    out: int,
    /,
) -> None: ...
def scatter_slices(
    shape: SliceShape,
    rows: int,
    rows_chosen: int,
    columns: int,
    columns_chosen: int,
    x: int,
    out: int,
    /,
) -> None: ...
