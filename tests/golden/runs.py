"""Golden weights: digests of the final weights of short runs on the embedded data, for every method and executor.

A refactoring must not change them; after a change of arithmetic they are recorded again, and the changelog says so.
Bits depend on PyTorch's version, the processor's instruction set and its vendor (MKL and oneDNN choose by
it), so each machine class and each cap on the instruction set of the kernels (SSFL_MAX_ISA) has its entry:

    python -m tests.golden.runs             compare with the recorded digests of this machine class
    python -m tests.golden.runs --record    write them
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from ssfl.cli import main
from ssfl.native.library import MAX_ISA

RECORD = Path(__file__).with_name("digests.json")
METHODS = {
    "ssfl": ["algorithm=ssfl", "model.dense_ratio=0.3"],
    "ssfl_warm_up": ["algorithm=ssfl", "model.dense_ratio=0.3", "algorithm.params.warmup_rounds=2"],
    "random_global": ["algorithm=ssfl", "algorithm.params.mode=random_global"],
    "random_layerwise": ["algorithm=ssfl", "algorithm.params.mode=random_layerwise"],
    "ssfl_shuffled": ["algorithm=ssfl", "model.dense_ratio=0.3", "algorithm.params.mode=ssfl_shuffled"],
    "random_clientwise": ["algorithm=ssfl", "algorithm.params.mode=random_clientwise"],
    "fedavg": ["algorithm=fedavg"],
    "fedavg_ft": ["algorithm=fedavg_ft"],
    "dispfl": ["algorithm=dispfl"],
    "sparsyfed": ["algorithm=sparsyfed"],
    "local": ["algorithm=local"],
}
EXECUTORS = {
    "sequential": ["engine.executor=sequential"],
    "threads": ["engine.executor=threads", "engine.workers=2"],
    "batched": ["engine.executor=batched", "engine.block=3"],
    "processes": ["engine.executor=processes", "engine.workers=2"],
}
COMMON = [
    "preset=digits",
    "training.comm_round=3",
    "training.client_num_in_total=6",
    "training.frac=0.5",
    "training.epochs=1",
    "engine.kernels=native",
    "engine.memory_format=contiguous",
    "engine.convolutions=direct",
    "experiment.seed=550",
]


def machine_class() -> str:
    """Properties of the machine that bits depend on."""
    capped = os.environ.get(MAX_ISA)
    cap = f", {MAX_ISA}={capped}" if capped else ""
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {vendor()}{cap}"


def vendor() -> str:
    """The processor's vendor on Linux; elsewhere its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("vendor_id"):
                return line.partition(":")[2].strip()
    return platform.machine()


def digest_of(arguments: list[str]) -> str:
    """The digest of a run's final tensors, names included."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*COMMON, *arguments, f"experiment.output_dir={folder}"]
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            code = main(["run", *words])
        if code:
            raise RuntimeError(f"{' '.join(words)} ended with {code}:\n{shown.getvalue()}")
        (path,) = Path(folder).rglob("*model*.safetensors")
        digest = hashlib.sha256()
        for name, tensor in sorted(load_file(path).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:32]


def digests() -> Iterator[tuple[str, str]]:
    """(run, digest) of every method with every executor."""
    for method, chosen in METHODS.items():
        for executor, engine in EXECUTORS.items():
            yield f"{method}/{executor}", digest_of(chosen + engine)


def recorded() -> dict[str, dict[str, str]]:
    """Machine class -> run -> digest."""
    known: dict[str, dict[str, str]] = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    return known


def record() -> None:
    """Write this machine class's digests."""
    known = recorded() | {machine_class(): dict(digests())}
    RECORD.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def compare() -> list[str]:
    """Runs whose bits differ from the recorded ones. Raises KeyError on a machine class without a record."""
    known = recorded()[machine_class()]
    return [run for run, digest in digests() if known.get(run) != digest]


if __name__ == "__main__":
    if sys.argv[1:] == ["--record"]:
        record()
    else:
        changed = compare()
        print("\n".join(changed) or f"{len(METHODS) * len(EXECUTORS)} runs end with the recorded bits")
        raise SystemExit(bool(changed))
