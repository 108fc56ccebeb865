"""The lines printed at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ssfl.report.runs.labels import labels, seed
from ssfl.report.runs.run import Row, Run
from ssfl.report.tables.breakdown import OVERALL
from ssfl.report.tables.computed import computed_text
from ssfl.report.tables.units import flops_text, size_text

PHASES: Mapping[str, str] = MappingProxyType(
    {"score": "scores", "store_mask": "mask", "fine_tune": "fine-tuning"}
)
"""The words for one-off phases; other methods' phases have their own names."""


def summary_text(run: Run) -> str:
    """Both accuracies, the bytes, the computed bytes of dense FedAvg, their ratio, and the folder of the results."""
    rounds = f"{run.rounds_done} round{'s' * (run.rounds_done != 1)}"
    lines = [
        f"{labels([run])[0]}, seed {seed(run)}: {run.status}, {rounds} in {run.wall_seconds:,.1f} s",
        *_accuracies(run),
        *_costs(run),
        *_computed(run),
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
        note = f"mean ± std over {clients or 'all'} client{'s' * (clients != 1)}: own models, own test splits"
        lines.append(_line("client accuracy", f"{mean:.2f} ± {std:.2f} %", note))
    return lines + _imbalance(last) + _validation(last)


def _imbalance(last: Row) -> list[str]:
    """The global model's metrics that `tracking.metrics=imbalanced` adds."""
    known = [
        f"{name.removesuffix(' %')} {100 * last[key]:.2f}"
        for key, name in OVERALL.items()
        if last.get(key) is not None
    ]
    return [_line("", ", ".join(known) + " %", "global model, macro means over classes")] if known else []


def _validation(last: Row) -> list[str]:
    """Accuracies on held-out training rows, if there are any."""
    lines = []
    if last.get("global_validation_accuracy") is not None:
        share = 100 * last["global_validation_accuracy"]
        lines.append(_line("validation", f"{share:.2f} %", "global model, all held-out training rows"))
    if last.get("client_validation_accuracy_mean") is not None:
        mean, std = (
            100 * last["client_validation_accuracy_mean"],
            100 * last["client_validation_accuracy_std"],
        )
        lines.append(_line("", f"{mean:.2f} ± {std:.2f} %", "own models, own held-out training rows"))
    return lines


def _costs(run: Run) -> list[str]:
    dense = run.fedavg_bytes
    half = None if dense is None else dense / 2  # FedAvg sends as much down as up
    lines = [
        _line("downlink", size_text(run.total("downlink_bytes")), _fedavg(half)),
        _line("uplink", size_text(run.total("uplink_bytes")), _fedavg(half)),
    ]
    if run.total("peer_bytes"):
        lines.append(_line("between clients", size_text(run.total("peer_bytes"))))
    ratio = "" if run.bytes_ratio is None else f"; FedAvg / this run = {run.bytes_ratio:.2f}"
    lines.append(_line("all bytes", size_text(run.total_bytes), _fedavg(dense) + ratio))
    if run.one_off_bytes:
        names = dict.fromkeys(row["phase"] for row in run.exchanges if row["event"] == "phase")
        listed = ", ".join(PHASES.get(name, name) for name in names)
        lines.append(_line("once", size_text(run.one_off_bytes), f"of them, outside the rounds: {listed}"))
    if run.total("link_seconds"):
        mbits, trip = (run.setting(f"communication.link_{name}", 0) for name in ("mbits", "round_trip_ms"))
        note = f"all messages on clients' links of {mbits:g} Mbit/s, {trip:g} ms round trip"
        lines.append(_line("time on the link", f"{run.total('link_seconds'):,.1f} s", note))
    lines.append(_line("training", flops_text(run.total("train_flops"))))
    return lines


def _computed(run: Run) -> list[str]:
    text = computed_text(run)
    return (
        [_line("computed", text, "engine.* of config.yaml: other ways may differ in the last bits")]
        if text
        else []
    )


def _places(run: Run) -> list[str]:
    pictures = sorted((run.folder / "report").glob("*.png"))
    lines = [_line("plots" if i == 0 else "", str(picture)) for i, picture in enumerate(pictures)]
    return [*lines, _line("run folder", str(run.folder))]


def _fedavg(count: float | None) -> str:
    return "" if count is None else f"dense FedAvg {size_text(count)}"


def _line(name: str, value: str, remark: str = "") -> str:
    return f"  {name:<16} {value:<18}" + f" ({remark})" if remark else f"  {name:<16} {value}"
