"""How a run was computed, as text: part of its result, because other ways may differ in the last bits."""

from __future__ import annotations

from ssfl.report.runs.run import Run


def computed_text(run: Run) -> str:
    """The text for the engine section of the run's configuration; empty if it has none."""
    executor = run.setting("engine.executor")
    if executor in (None, "auto"):
        return ""
    workers, block = run.setting("engine.workers", 1), run.setting("engine.block", 1)
    threads = run.setting("engine.threads", 1)
    ways = {
        "sequential": "one client after the other" + (f" on {threads} threads" if threads != 1 else ""),
        "threads": f"{workers} clients at a time, on threads",
        "processes": f"{workers} clients at a time, in processes"
        + (f" that train {block} as one" if block != 1 else ""),
        "batched": f"{block} clients trained as one",
    }
    parts = [ways.get(str(executor), str(executor))]
    if run.setting("engine.device", "cpu") != "cpu":
        parts.append("on a CUDA device")
    elif run.setting("engine.kernels") is not None:
        parts.append("kernels in C" if run.setting("engine.kernels") == "native" else "PyTorch's kernels")
    lying = {"channels_last": "channels last", "mixed": "mixed memory format"}
    parts += [lying[f] for f in [str(run.setting("engine.memory_format"))] if f in lying]
    parts += ["Winograd convolutions"] if run.setting("engine.convolutions") == "winograd" else []
    parts += [str(p) for p in [run.setting("engine.precision", "fp32")] if p != "fp32"]
    return ", ".join(parts)
