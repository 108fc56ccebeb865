"""The client state of a run on disk, so that a restarted site has its masks and codec feedback.

A file holds the state after one exchange. The last few are kept, and those of the server's checkpoints: a server that
resumes from a checkpoint repeats exchanges that this site has already done.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ssfl.algorithms.base import ClientState
from ssfl.engine.state.serialization import apart
from ssfl.output import write_atomically

KEPT_DAYS = 30
"""How long a site keeps the states of a run that has not ended with a Finish: it may be resumed."""
KEPT = 4
"""Number of the last states that are kept in any case: the server names a checkpoint in its next message."""
_STATE_FILE = re.compile(r"\d{8}\.safetensors|\.\d{8}\.\d+\.safetensors")
"""A state, or what a crash left of one while it was written."""
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=@-]{0,127}")


@dataclass(frozen=True)
class Memory:
    """After `exchange`: the client's state and the broadcasts that it holds (digest -> exchange that sent it)."""

    exchange: int = 0
    state: ClientState = field(default_factory=dict)
    holds: Mapping[str, int] = field(default_factory=dict)


def is_run_name(name: str) -> bool:
    """Whether a run's name, which comes from the server, is safe as a folder name."""
    return bool(_RUN_NAME.fullmatch(name))


def forget_old_runs(folder: Path | None, run: str, now: float) -> tuple[str, ...]:
    """Delete the states of runs other than `run` that have not been used for KEPT_DAYS. Returns their names."""
    if folder is None or not folder.is_dir():
        return ()
    old = []
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(OSError):
            states = is_run_name(path.name) and path.name != run and path.is_dir()
            if states and now - path.stat().st_mtime > KEPT_DAYS * 86_400 and _is_only_states(path):
                _delete_states(path)
                old.append(path.name)
    return tuple(old)


def _is_only_states(folder: Path) -> bool:
    """Whether a folder holds only files that this module writes, at least one: other folders are left alone."""
    paths = list(folder.iterdir())
    return bool(paths) and all(_STATE_FILE.fullmatch(path.name) for path in paths)


def _delete_states(folder: Path) -> None:
    """Delete the states in a folder, and the folder if it held nothing else. Raises OSError."""
    states = [path for path in folder.iterdir() if _STATE_FILE.fullmatch(path.name)]
    for path in states:
        path.unlink(missing_ok=True)
    if states and not any(folder.iterdir()):
        folder.rmdir()


class KeptStates:
    """The states of one run in `folder`/RUN; the newest are also in memory. folder None: nothing is written."""

    def __init__(self, folder: Path | None, run: str) -> None:
        if not is_run_name(run):
            raise ValueError(f"run {run!r:.60}: not a valid run name")
        self.folder = None if folder is None else folder / run
        self._recent: dict[int, Memory] = {}

    def before(self, exchange: int) -> Memory:
        """The state just before `exchange`; empty for a run that is new to this site."""
        numbers = {*self._recent, *self._numbers()}
        for number in sorted((n for n in numbers if n < exchange), reverse=True):
            if (memory := self._read(number)) is not None:
                return memory
        return Memory()

    def put(self, memory: Memory, checkpoints: Collection[int] = ()) -> str | None:
        """Store a state and drop later ones (the exchange was repeated). Returns an error text if the disk failed.

        checkpoints: the exchanges after which the server's checkpoints were saved.
        """
        later = [number for number in self._recent if number >= memory.exchange]
        for number in later:
            del self._recent[number]
        for number in self._numbers():
            if number >= memory.exchange:
                self._path(number).unlink(missing_ok=True)
        before = self.before(memory.exchange)
        self._recent[memory.exchange] = memory
        for number in _not_needed(sorted(self._recent), checkpoints if self.folder is None else ()):
            del self._recent[number]
        if before.state is not memory.state or before.holds != memory.holds:
            return self._write(memory, checkpoints)
        if self.folder is not None:
            with contextlib.suppress(OSError):
                os.utime(self.folder)  # the run is in use
        return None

    def forget(self) -> None:
        """Delete all states of the run, and nothing else: the name of the folder comes from the server."""
        self._recent.clear()
        if self.folder is not None:
            with contextlib.suppress(OSError):
                _delete_states(self.folder)

    # ── files ────────────────────────────────────────────────────────────────────────────────────────────────────
    def _numbers(self) -> list[int]:
        if self.folder is None or not self.folder.is_dir():
            return []
        return sorted(int(p.stem) for p in self.folder.glob("*.safetensors") if p.stem.isdigit())

    def _path(self, exchange: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{exchange:08d}.safetensors"

    def _read(self, exchange: int) -> Memory | None:
        """None for a file that a crash or a full disk truncated."""
        if exchange in self._recent:
            return self._recent[exchange]
        try:
            with safe_open(self._path(exchange), framework="pt") as file:
                holds = json.loads((file.metadata() or {})["holds"])
                state: dict[str, Tensor] = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        return Memory(exchange, state, {str(k): int(v) for k, v in holds.items()})

    def _write(self, memory: Memory, checkpoints: Collection[int]) -> str | None:
        if self.folder is None:
            return None
        path = self._path(memory.exchange)
        tensors = apart({name: t.detach().contiguous() for name, t in memory.state.items()})
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(path, save(tensors, {"holds": json.dumps(dict(memory.holds))}))
            for number in _not_needed(self._numbers(), checkpoints):
                self._path(number).unlink(missing_ok=True)
        except OSError as error:
            return f"{path}: cannot be written ({error.strerror})"
        return None


def _not_needed(numbers: Sequence[int], checkpoints: Collection[int]) -> list[int]:
    """Those of the states, in ascending order, that are neither among the last KEPT nor as of a checkpoint."""
    kept = {max((n for n in numbers if n <= checkpoint), default=0) for checkpoint in checkpoints}
    return [number for number in numbers[:-KEPT] if number not in kept]
