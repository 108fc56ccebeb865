"""The lines that end a run."""

from __future__ import annotations

from ssfl.report.labels import labels, seed
from ssfl.report.runs import Run


def summary_text(run: Run) -> str:
    """Both accuracies, the bytes and those of dense FedAvg by arithmetic, their ratio, and where everything lies."""
    lines = [
        f"{labels([run])[0]}, seed {seed(run)}: {run.status}, {run.rounds_done} rounds in {run.wall_seconds:,.1f} s",
        *_accuracies(run),
        *_costs(run),
        *_places(run),
    ]
    return "\n".join(lines)


def _accuracies(run: Run) -> list[str]:
    last = run.last_evaluation()
    if not last:
        return [_line("accuracy", "never evaluated")]
    lines = []
    if last.get("global_accuracy") is not None:
        share = 100 * last["global_accuracy"]
        lines.append(_line("global accuracy", f"{share:.2f} %", "global model, whole test set"))
    if last.get("client_accuracy_mean") is not None:
        mean, std = 100 * last["client_accuracy_mean"], 100 * (last.get("client_accuracy_std") or 0.0)
        clients = sum(value is not None for value in last.get("client_accuracy") or ())
        said = f"mean ± std over {clients or 'all'} clients: own models, own test splits"
        lines.append(_line("client accuracy", f"{mean:.2f} ± {std:.2f} %", said))
    return lines


def _costs(run: Run) -> list[str]:
    dense = run.fedavg_bytes
    half = None if dense is None else dense / 2  # FedAvg sends as much down as up
    lines = [
        _line("downlink", _megabytes(run.total("downlink_bytes")), _fedavg(half)),
        _line("uplink", _megabytes(run.total("uplink_bytes")), _fedavg(half)),
    ]
    if run.total("peer_bytes"):
        lines.append(_line("between clients", _megabytes(run.total("peer_bytes"))))
    ratio = "" if run.bytes_ratio is None else f"; FedAvg / this run = {run.bytes_ratio:.2f}"
    lines.append(_line("all bytes", _megabytes(run.total_bytes), _fedavg(dense) + ratio))
    lines.append(_line("training", f"{run.total('train_flops') / 1e12:,.3g} TFLOPs"))
    return lines


def _places(run: Run) -> list[str]:
    pictures = sorted((run.folder / "report").glob("*.png"))
    lines = [_line("plots" if i == 0 else "", str(picture)) for i, picture in enumerate(pictures)]
    return [*lines, _line("run folder", str(run.folder))]


def _fedavg(count: float | None) -> str:
    return "" if count is None else f"dense FedAvg {_megabytes(count)}"


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.2f} MB"


def _line(name: str, value: str, remark: str = "") -> str:
    return f"  {name:<16} {value:<18}" + f" ({remark})" if remark else f"  {name:<16} {value}"
