"""`ssfl doctor`: facts about this machine, and how a configuration would be computed on it."""

from __future__ import annotations

import importlib.util
import os
import platform
from dataclasses import asdict
from pathlib import Path

import torch

import ssfl
from ssfl.assemble.build import setup_of
from ssfl.assemble.execution import resolve_engine
from ssfl.assemble.measurement import cache_folder, forget_measurements
from ssfl.config import Config
from ssfl.native.library import available, isa
from ssfl.report.runs.run import Run
from ssfl.report.tables.computed import computed_text
from ssfl.run_folder import processor

EXTRAS = ("wandb", "tensorboard", "submitit", "ray", "flwr", "torchvision", "onnx")
"""Packages of the optional extras."""


def show_doctor(config: Config | None, measure: bool) -> int:
    """Print facts about the machine and, with a configuration, how it would be computed. Returns exit code 0.

    measure: remove all cached measurements first, so that this configuration and every later run are measured again.
    """
    print(_machine())
    if measure:
        print(f"measurements removed: {forget_measurements()}; a network's next run measures again")
    if config is None:
        return 0
    resolved = resolve_engine(config, setup_of(config))
    run = Run(Path(), {"engine": asdict(resolved.engine)}, ())
    print(f"this run computes {computed_text(run)}")
    keys = ("executor", "workers", "block", "memory_format", "convolutions", "kernels")
    fixed = " ".join(f"engine.{key}={getattr(resolved.engine, key)}" for key in keys)
    print(f"to use the same settings on every machine: {fixed}")
    return 0


def _machine() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    kept = len(list(cache_folder().glob("*.json")))
    there = [name for name in EXTRAS if importlib.util.find_spec(name) is not None]
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that PyTorch sees"
    lines = {
        "ssfl": f"{ssfl.__version__}, Python {platform.python_version()}, PyTorch {torch.__version__}",
        "processor": f"{processor()}, {cores} core{'s' * (cores > 1)} for this process",
        "kernels in C": f"built, {isa()}"
        if available()
        else "not built; PyTorch's kernels are used (docs/engine.md)",
        "CUDA device": cuda,
        "extras": ", ".join(there) or "none",
        "measurements": f"{kept} in {cache_folder()}",
    }
    return "\n".join(f"{name:<14}{text}" for name, text in lines.items())
