"""The client x class table as text and as a figure, for `ssfl partition`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssfl.data.errors import DataError
from ssfl.data.federation import Federation
from ssfl.data.partition import summary_table
from ssfl.output import output, whole_file

PICTURE_SUFFIXES = (".png", ".svg", ".pdf")
_WIDE = 20
"""With more classes than this, a client's row names its largest ones instead of all."""
_MOST_ROWS = 200
"""Clients that have one line each; the summary and the figure include all."""
_LARGEST_SHOWN = 5


def show_table(federation: Federation, out: Path | None = None) -> str:
    """Text: training rows of each class at each client, sizes, and the distance of clients from the whole data set.

    out: also draw the table there (.png, .svg or .pdf). Raises DataError for another ending.
    """
    arrays = federation.arrays
    table = summary_table(
        arrays.train_y.numpy(), [part.numpy() for part in federation.train_parts], arrays.num_classes
    )
    tests = [len(part) for part in federation.test_parts]
    lines = [f"{arrays.name}: training examples of each class per client", ""]
    clients = federation.client_names or tuple(map(str, range(len(table))))
    lines += _columns(_rows(table, tests, arrays.class_names, clients))
    if len(table) > _MOST_ROWS:
        lines += [f"the first {_MOST_ROWS} of {len(table)} clients; --out draws all"]
    lines += ["", *summary_lines(table, tests)]
    held = [len(part) for part in federation.held_out]
    if held:
        lines += [
            f"held out for validation, not counted above: {sum(held)}, per client {_spread(np.array(held))}"
        ]
    if out is not None:
        plot_table(table, arrays.class_names, arrays.name, out, federation.client_names)
        lines += [f"picture: {out}"]
    return "\n".join(lines)


def summary_lines(table: NDArray[np.int64], tests: list[int]) -> list[str]:
    """Sizes, classes per client and mean distance from the whole data set, for a table [K, C]."""
    sizes, held = table.sum(axis=1), (table > 0).sum(axis=1)
    return [
        f"clients {len(table)}, examples per client: {_spread(sizes)}",
        f"classes per client: {_spread(held)}; test examples per client: {_spread(np.array(tests))}",
        f"distance from all data (total variation, 0 = IID, 1 = disjoint): {total_variation(table):.3f} on average",
    ]


def total_variation(table: NDArray[np.int64]) -> float:
    """Mean over clients of half the sum over classes of |client's share - overall share|; table [K, C]."""
    whole = table.sum(axis=0) / table.sum()
    own = table / table.sum(axis=1, keepdims=True)
    return float(np.abs(own - whole).sum(axis=1).mean() / 2)


def _spread(values: NDArray[np.int64]) -> str:
    return f"{values.min()} to {values.max()} (median {np.median(values):g})"


def _rows(
    table: NDArray[np.int64], tests: list[int], names: tuple[str, ...], clients: Sequence[str]
) -> list[list[str]]:
    wide = len(names) > _WIDE
    title = ["client", "train", "test", *(["classes", "largest"] if wide else names)]
    rows = [title]
    for client, counts, tested in list(zip(clients, table, tests, strict=True))[:_MOST_ROWS]:
        cells = _largest(counts, names) if wide else [str(count) if count else "." for count in counts]
        rows.append([client, str(counts.sum()), str(tested), *cells])
    if len(table) > _MOST_ROWS:
        rows.append(["…", *[""] * (len(title) - 1)])
    if not wide:
        rows.append(["all", str(table.sum()), str(sum(tests)), *map(str, table.sum(axis=0))])
    return rows


def _largest(counts: NDArray[np.int64], names: tuple[str, ...]) -> list[str]:
    order = [label for label in np.argsort(-counts, kind="stable")[:_LARGEST_SHOWN] if counts[label]]
    return [str(np.count_nonzero(counts)), ", ".join(f"{names[label]}: {counts[label]}" for label in order)]


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]


def plot_table(
    table: NDArray[np.int64],
    class_names: tuple[str, ...],
    title: str,
    out: Path,
    client_names: tuple[str, ...] = (),
) -> None:
    """Draw table [K, C]: rows are clients, columns are classes, colours are counts; creates the folder if missing.

    White cells have no examples; colours start at one example.
    """
    if out.suffix.lower() not in PICTURE_SUFFIXES:
        raise DataError(f"{out}: the name of a figure must end in {', '.join(PICTURE_SUFFIXES)}")
    from matplotlib.figure import Figure  # without pyplot: no global state and no window
    from matplotlib.ticker import MaxNLocator

    clients, classes = table.shape
    figure = Figure(
        figsize=(min(16.0, 3 + 0.4 * classes), min(16.0, 2 + 0.2 * clients)), layout="constrained"
    )
    axes = figure.add_subplot()
    image = axes.imshow(
        np.ma.masked_equal(table, 0), aspect="auto", cmap="viridis_r", vmin=1, interpolation="none"
    )
    figure.colorbar(image, ax=axes, label="training examples (white: none)")
    axes.set(xlabel="class", ylabel="client", title=f"{title}: examples per client")
    if client_names and clients <= 2 * _WIDE:
        axes.set_yticks(range(clients), labels=list(client_names))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if classes <= _WIDE:
        axes.set_xticks(range(classes), labels=list(class_names), rotation=45, ha="right")
    with output(f"--out {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out) as temporary:
            figure.savefig(temporary, dpi=120)
