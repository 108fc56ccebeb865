"""Checkpoints: a safetensors file and a JSON file, each renamed into place; the JSON is the commit point."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from safetensors.torch import load

from ssfl.algorithms.base import Clock
from ssfl.engine.accounting.ledger import Ledger
from ssfl.engine.accounting.scoreboard import Scoreboard
from ssfl.engine.state.client_store import MEMORY_RECORDS, READ_ERRORS, StoredMemory
from ssfl.engine.state.progress import Progress
from ssfl.engine.state.serialization import KEPT_CHECKPOINTS, Packer, unpack
from ssfl.engine.state.tensor_file import pieces, write_pieces
from ssfl.engine.state.typed import check_types
from ssfl.errors import UserError
from ssfl.output import write_atomically

FORMAT = 2
COMMON_RECORDS = (Clock, Ledger, Scoreboard, Progress, StoredMemory, *MEMORY_RECORDS)
"""Types of records in every checkpoint, in addition to those of the method's state."""
_NAME = re.compile(r"(\d{8,})\.(json|safetensors)|\.\d{8,}\..+")
"""Names of our files: numbered ones, and hidden ones, left incomplete by a crash. No other file is changed."""
Check = Callable[[Progress], object]
"""Checks a progress that was read; raises any error if the run cannot continue from it."""


class CheckpointError(UserError):
    """No checkpoint can be read; the message names the file and the reason."""


@dataclass
class Checkpoints:
    """A folder of checkpoints of one run.

    Written when `every_seconds` have passed or `every_rounds` are done (0 disables a rule). The two newest are
    kept. An incomplete checkpoint (after a crash) has no JSON or a wrong digest, and is not used.
    """

    folder: Path
    every_seconds: float = 10.0
    every_rounds: int = 0
    passed_over: list[CheckpointError] = field(default_factory=list)
    """Errors of checkpoints newer than the one that `latest` returned."""
    _last: float = field(default_factory=time.monotonic)
    _rounds: int = 0

    def due(self, progress: Progress) -> bool:
        """Whether to save now; by rounds only after a training round, not after every phase."""
        done = progress.clock.round - 1
        by_round = self.every_rounds > 0 and done != self._rounds and done % self.every_rounds == 0
        self._rounds = done
        by_time = self.every_seconds > 0 and time.monotonic() - self._last >= self.every_seconds
        return by_round or by_time

    def save(self, progress: Progress, extra: Mapping[str, Any] | None = None) -> Path:
        """Write one checkpoint; `extra` is plain JSON kept with it (the position in metrics.jsonl).

        Raises OSError if there is no space; earlier checkpoints stay, and this one is removed completely.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        packer = Packer()
        body = packer.pack(progress)
        number = 1 + max((int(path.stem) for path in self._by_age()), default=0)
        tensors = self.folder / f"{number:08d}.safetensors"
        content = {"progress": body, "extra": dict(extra or {})}
        head = {"format": FORMAT, "digest": _digest(content, pieces(packer.tensors, {})), **content}
        path = self.folder / f"{number:08d}.json"
        try:
            write_pieces(tensors, pieces(packer.tensors, {}))
            write_atomically(path, json.dumps(head).encode())
        except OSError:
            tensors.unlink(missing_ok=True)
            raise
        self._prune()
        self._last = time.monotonic()
        return path

    def latest(
        self, records: Sequence[type[Any]], check: Check | None = None
    ) -> tuple[Progress, dict[str, Any]] | None:
        """The newest readable checkpoint and its extra; None if there is none. Errors of newer ones: `passed_over`.

        records: types of the method's state. check: raises if the run cannot continue from it. Raises CheckpointError
        if there are checkpoints and none can be read.
        """
        self.passed_over.clear()
        for path in reversed(self._by_age()):
            try:
                found = read_checkpoint(path, records)
                if check is not None:
                    _checked(path, found[0], check)
            except CheckpointError as error:
                self.passed_over.append(error)
                continue
            self._rounds = found[0].clock.round - 1
            return found
        if self.passed_over:
            raise CheckpointError(
                f"{self.passed_over[0]}; no other checkpoint can be read; remove {self.folder} to start the run again"
            )
        return None

    def newest_facts(self) -> Facts | None:
        """Facts about the run in the newest checkpoint, without its tensors; None if none can be read."""
        for path in reversed(self._by_age()):
            try:
                head = _head(path)
                clock = head["progress"]["fields"]["clock"]["fields"]
                return Facts(int(clock["round"]) - 1, int(clock["total"]), dict(head["extra"]))
            except (CheckpointError, LookupError, TypeError, ValueError, AttributeError):
                continue  # `latest` reports the error
        return None

    def _by_age(self) -> list[Path]:
        """The JSON files, oldest first; other files in the folder are ignored."""
        matches = [(path, _NAME.fullmatch(path.name)) for path in self.folder.glob("*.json")]
        ours = [path for path, match in matches if match and match[1] and path.is_file()]
        return sorted(ours, key=lambda path: int(path.stem))

    def _prune(self) -> None:
        kept = {path.stem for path in self._by_age()[-KEPT_CHECKPOINTS:]}
        for path in self.folder.iterdir():
            match = _NAME.fullmatch(path.name)
            if match and match[1] not in kept and not path.is_dir():  # hidden ones are never kept
                path.unlink(missing_ok=True)


@final
@dataclass(frozen=True)
class Facts:
    """Facts about the run in a checkpoint."""

    rounds_done: int
    rounds: int
    """Configured number when it was written."""
    extra: Mapping[str, Any]


def read_checkpoint(path: Path, records: Sequence[type[Any]]) -> tuple[Progress, dict[str, Any]]:
    """One checkpoint, by the path of its JSON file. Raises CheckpointError, with the file and the fault."""
    try:
        head = _head(path)
        raw = path.with_suffix(".safetensors").read_bytes()
        if _digest({"progress": head["progress"], "extra": head["extra"]}, [raw]) != head["digest"]:
            raise CheckpointError(f"{path}: damaged, or its .safetensors is (their digest does not match)")
        progress = unpack(head["progress"], load(raw), (*COMMON_RECORDS, *records))
        extra = head["extra"]
        if not isinstance(progress, Progress):
            raise CheckpointError(f"{path}: contains no progress")
        check_types(progress)
        _check_extra(extra)
        _check_clock(progress.clock)
    except CheckpointError:
        raise
    except READ_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: not a checkpoint of this run ({reason})") from error
    return progress, extra


def _head(path: Path) -> dict[str, Any]:
    """The JSON content of a checkpoint of this format."""
    try:
        head = json.loads(path.read_bytes())
        if not isinstance(head, dict):
            raise CheckpointError(f"{path}: not a checkpoint (no JSON object)")
        if head["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {head['format']}, this program reads {FORMAT}")
    except CheckpointError:
        raise
    except READ_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: not a checkpoint of this run ({reason})") from error
    return head


def _check_extra(extra: Any) -> None:
    """Check what a run stores in addition to its progress. Raises TypeError or ValueError if a value is impossible."""
    if not isinstance(extra, dict):
        raise TypeError("its extra is not a mapping")
    for name, kinds in (("metrics_bytes", int), ("wall_seconds", (int, float)), ("exchange", int)):
        value = extra.get(name, 0)
        if not isinstance(value, kinds) or isinstance(value, bool) or not 0 <= value < float("inf"):
            raise ValueError(f"its {name} is {value!r:.50}")


def _check_clock(clock: Clock) -> None:
    if not 1 <= clock.round <= clock.total + 1:
        raise ValueError(f"its next round is {clock.round} of {clock.total}")


def _checked(path: Path, progress: Progress, check: Check) -> None:
    try:
        check(progress)
    except Exception as error:  # a method may raise any error on a state that it did not make
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path}: this run cannot continue from it ({reason})") from error


def _digest(content: dict[str, Any], parts: Iterable[bytes | memoryview]) -> str:
    """Digest of both files, to detect changes in the JSON and in the tensors."""
    state = hashlib.blake2b(json.dumps(content).encode(), digest_size=16)
    for part in parts:
        state.update(part)
    return state.hexdigest()
