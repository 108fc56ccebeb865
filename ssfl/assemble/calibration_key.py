"""The key of a cached measurement: everything that may change the time of a training step."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
from collections.abc import Iterable
from functools import cache
from types import ModuleType

import torch

import ssfl
from ssfl.assemble.build import RunSetup
from ssfl.assemble.checked_method import unchecked
from ssfl.code_version import PACKAGE, code_version
from ssfl.engine.executors.own_step import OwnStep
from ssfl.native.library import MAX_ISA, isa
from ssfl.run_folder import processor

CAPS = (MAX_ISA, "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
"""Environment variables that cap the instruction set of our kernels, PyTorch's, oneDNN's (two names) and MKL's."""
SOURCES = ("native", "core", "algorithms", "models", "engine/client", "engine/compute", "engine/executors")
"""Packages whose code computes a step or measures it."""


def calibration_key(
    setup: RunSetup, batch_size: int, block: int, workers: int, native: bool, worker_block: int
) -> str:
    """Hex digits for a file name; equal keys mean that a measurement can be used again."""
    key = [
        processor(),
        os.cpu_count(),
        [os.environ.get(name) for name in CAPS],
        isa(),
        code_version().kernels,
        source_digest(),
        torch.__version__,
        ssfl.__version__,
        setup.config.engine.precision,
        setup.config.model.name,
        _code_digest(type(layer) for layer in setup.module.modules()),
        _method_key(setup) if OwnStep.exists(setup.algorithm.tasks.values()) else None,
        setup.layout.digest.hex(),
        list(setup.federation.input_shape),
        batch_size,
        block,
        workers,
        native,
        worker_block,
    ]
    return hashlib.blake2b(json.dumps(key).encode(), digest_size=12).hexdigest()


@cache
def source_digest() -> str:
    """Digest of the Python files in `SOURCES`; changes elsewhere (reports, deployment) do not count."""
    digest = hashlib.blake2b(digest_size=12)
    for file in sorted(path for name in SOURCES for path in (PACKAGE / name).rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE).as_posix()}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _method_key(setup: RunSetup) -> list[str]:
    """The method, its settings and its file: all methods without their own step share a measurement."""
    chosen = setup.config.algorithm
    kind = type(unchecked(setup.algorithm))
    return [chosen.name, repr(chosen.params), _digest([inspect.getmodule(kind) or kind])]


def _code_digest(kinds: Iterable[type]) -> str:
    """Digest of the source of all layer classes outside PyTorch, so that a changed network is measured again."""
    own = {kind for kind in kinds if not kind.__module__.startswith("torch.")}
    return _digest(sorted(own, key=lambda k: (k.__module__, k.__qualname__)))


def _digest(sources: Iterable[type | ModuleType]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for source in sources:
        with contextlib.suppress(OSError, TypeError):  # without a source file
            digest.update(inspect.getsource(source).encode())
    return digest.hexdigest()
