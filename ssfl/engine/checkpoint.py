"""Checkpoints: a safetensors file and a JSON file, each renamed into place; the JSON is the commit point."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from ssfl.algorithms.base import Clock
from ssfl.core.payloads import DenseValues, MaskBits, MaskedValues, Payload, SparseValues
from ssfl.engine.client_store import StoredState
from ssfl.engine.driver import Progress
from ssfl.engine.ledger import Ledger
from ssfl.engine.records import Packer, unpack
from ssfl.engine.remembered import Remembered
from ssfl.engine.scoreboard import Scoreboard

FORMAT = 1
KEPT = 2
COMMON_RECORDS = (
    Clock,
    Ledger,
    Scoreboard,
    Progress,
    StoredState,
    Remembered,
    Payload,
    DenseValues,
    MaskBits,
    MaskedValues,
    SparseValues,
)


class CheckpointError(ValueError):
    """No checkpoint can be read here; says which file and why."""


@dataclass
class Checkpoints:
    """A folder of checkpoints of one run.

    Written when `every_seconds` have passed or `every_rounds` are done (0 switches a rule off). The two newest are
    kept; one that a crash cut short has no JSON, or a digest that does not match, and is passed over.
    """

    folder: Path
    every_seconds: float = 10.0
    every_rounds: int = 0
    _last: float = field(default_factory=time.monotonic)

    def due(self, progress: Progress) -> bool:
        """Whether this exchange should be saved now."""
        by_round = self.every_rounds > 0 and (progress.clock.round - 1) % self.every_rounds == 0
        by_time = self.every_seconds > 0 and time.monotonic() - self._last >= self.every_seconds
        return by_round or by_time

    def save(self, progress: Progress, extra: dict[str, Any] | None = None) -> Path:
        """Write one checkpoint; `extra` is plain JSON kept with it (the position in metrics.jsonl)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        packer = Packer()
        body = packer.pack(progress)
        number = 1 + max((int(p.stem) for p in self.folder.glob("*.json") if p.stem.isdigit()), default=0)
        raw = save(packer.tensors)
        write_atomically(self.folder / f"{number:08d}.safetensors", raw)
        told = {"progress": body, "extra": extra or {}}
        head = {"format": FORMAT, "digest": _digest(told, raw), **told}
        path = self.folder / f"{number:08d}.json"
        write_atomically(path, json.dumps(head).encode())
        self._prune()
        self._last = time.monotonic()
        return path

    def latest(self, records: Sequence[type[Any]]) -> tuple[Progress, dict[str, Any]] | None:
        """The newest whole checkpoint and its extra; None when there is none."""
        failures = []
        for path in sorted(self.folder.glob("*.json"), reverse=True):
            try:
                return read_checkpoint(path, records)
            except CheckpointError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return None

    def _prune(self) -> None:
        kept = sorted(self.folder.glob("*.json"))[-KEPT:]
        names = {p.stem for p in kept}
        for path in self.folder.iterdir():
            if path.stem not in names:
                path.unlink(missing_ok=True)


def read_checkpoint(path: Path, records: Sequence[type[Any]]) -> tuple[Progress, dict[str, Any]]:
    """One checkpoint by its JSON file; CheckpointError names the file and the fault."""
    try:
        head = json.loads(path.read_text())
        raw = path.with_suffix(".safetensors").read_bytes()
        if head["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {head['format']}, this program reads {FORMAT}")
        if _digest({"progress": head["progress"], "extra": head["extra"]}, raw) != head["digest"]:
            raise CheckpointError(f"{path}: damaged, or its .safetensors is (their digest does not match)")
        progress = unpack(head["progress"], load(raw), (*COMMON_RECORDS, *records))
        extra: dict[str, Any] = head["extra"]
    except CheckpointError:
        raise
    except (OSError, LookupError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of this run ({error})") from error
    if not isinstance(progress, Progress):
        raise CheckpointError(f"{path}: holds no progress")
    return progress, extra


def _digest(told: dict[str, Any], raw: bytes) -> str:
    """Of both files: a changed digit in the JSON is found as surely as a changed bit in a tensor."""
    return hashlib.blake2b(json.dumps(told).encode() + raw, digest_size=16).hexdigest()


def write_atomically(path: Path, raw: bytes) -> None:
    """Either the old file or the whole new one, whatever happens in between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
