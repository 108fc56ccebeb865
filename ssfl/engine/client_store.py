"""What clients remember between rounds: in memory up to a budget, beyond it in files of the run folder.

A tensor that several clients hold (a mask that all were sent) stays in memory once. A file is written once and never
changed, so a checkpoint names it instead of holding the state again; files that neither the clients nor a kept
checkpoint need are removed after the next checkpoint.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ssfl.algorithms.base import ClientState
from ssfl.engine.records import apart

KEPT_CHECKPOINTS = 2
SUFFIX = ".safetensors"


class StoreError(ValueError):
    """A client's state cannot be read: says which file and why."""


@dataclass(frozen=True, eq=False)
class StoredState(Mapping[str, Tensor]):
    """A client's state on disk; a checkpoint holds this name of it.

    A look at a tensor maps its file into memory for as long as that tensor lives: pages that the kernel may take back.
    Pickled, it is the name still: a worker process reads for itself.
    """

    file: str
    """Within the store's folder; empty when all tensors are shared."""
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors that other clients hold too: not in the file."""

    def within(self, folder: Path) -> StoredState:
        """The same, knowing where its file lies (a checkpoint does not: a run folder may be moved)."""
        object.__setattr__(self, "_folder", folder)
        return self

    def read(self) -> dict[str, Tensor]:
        """All of it, in memory. Raises StoreError when the file is gone or damaged."""
        return {name: self[name].clone() if name not in self.shared else self.shared[name] for name in self}

    def __getitem__(self, name: str) -> Tensor:
        if name in self.shared:
            return self.shared[name]
        if not self.file:
            raise KeyError(name)
        with self._opened() as file:
            if name not in file.keys():  # noqa: SIM118 (no mapping)
                raise KeyError(name)
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        if self.file:
            with self._opened() as file:
                yield from file.keys()
        yield from self.shared

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        path = getattr(self, "_folder", Path()) / self.file
        try:
            opened = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise StoreError(
                f"{path}: this client's state cannot be read ({error}); start the run anew"
            ) from error
        with opened as file:
            yield file


@final
class Entry:
    """What a client remembered after one exchange, wherever it lies now: whoever keeps this keeps no tensor."""

    def __init__(self, state: ClientState) -> None:
        self.state = state


ClientStates = Mapping[int, ClientState]


class ClientStore:
    """States by client number; the ones not asked for longest go to `folder` when memory holds too many.

    memory_bytes: how much the states may take in memory; None, or no folder: all stay there.
    """

    def __init__(self, folder: Path | None = None, memory_bytes: int | None = None) -> None:
        self.folder = folder
        self.budget = memory_bytes if folder is not None else None
        self._memory: OrderedDict[int, Entry] = OrderedDict()
        self._disk: dict[int, tuple[Entry, StoredState]] = {}
        self._holders: Counter[int] = Counter()
        self._saved: deque[set[str]] = deque(maxlen=KEPT_CHECKPOINTS)
        self._unsynced: list[Path] = []
        self._number = 0
        self.used_bytes = 0
        """Of the states in memory, and of what they share."""

    def get(self, client: int) -> ClientState:
        """What the client remembers; nothing at first. Raises StoreError when its file is gone or damaged."""
        if client in self._disk:
            state = self._disk[client][1]
            len(state)  # opens the file: what is wrong with it is said here
            return state
        if client in self._memory:
            self._memory.move_to_end(client)
            return self._memory[client].state
        return {}

    def entry(self, client: int) -> Entry:
        """What the client remembers now, also after it remembers something else. KeyError when it remembers nothing."""
        return self._disk[client][0] if client in self._disk else self._memory[client]

    def put(self, client: int, state: ClientState) -> None:
        """The client remembers this now; others may go to disk for it."""
        self._forget(client)
        self._memory[client] = Entry(state)
        for pointer, size in _storages(state).items():
            self.used_bytes += size if not self._holders[pointer] else 0
            self._holders[pointer] += 1
        while self.budget is not None and self.used_bytes > self.budget and self._memory:
            self._spill(next(iter(self._memory)))

    def snapshot(self) -> ClientStates:
        """All states now, by client; it stays true whatever is put later. Tensors are never changed in place."""
        both: dict[int, ClientState] = {c: e.state for c, e in self._memory.items()}
        both |= {c: stored for c, (_, stored) in self._disk.items()}
        return {client: both[client] for client in sorted(both)}

    def restore(self, states: ClientStates) -> None:
        """Go on from a snapshot of this store's folder."""
        self._memory.clear()
        self._disk.clear()
        self._holders.clear()
        self.used_bytes = 0
        self._number = max([self._number, *(_number(p) for p in self._files())])
        if names := _names(states):
            self._saved.append(names)
        for client, state in states.items():
            if isinstance(state, StoredState):
                self._hold(client, Entry(state), state.within(self._place()))
            else:
                self.put(client, state)

    def flush(self) -> None:
        """Before a checkpoint is written: what it will name survives a power cut."""
        for path in self._unsynced:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._unsynced.clear()

    def keep(self, states: ClientStates) -> None:
        """After a checkpoint of `states`: remove the files that no kept checkpoint and no client needs."""
        self._saved.append(_names(states))
        needed = {s.file for _, s in self._disk.values()}.union(*self._saved)
        for path in self._files():
            if path.name not in needed:
                path.unlink(missing_ok=True)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────
    def _forget(self, client: int) -> None:
        state: ClientState = {}
        if client in self._disk:
            state = self._disk.pop(client)[1].shared
        elif client in self._memory:
            state = self._memory.pop(client).state
        for pointer, size in _storages(state).items():
            self._holders[pointer] -= 1
            if not self._holders[pointer]:
                del self._holders[pointer]
                self.used_bytes -= size

    def _spill(self, client: int) -> None:
        """One state to disk, but for what others hold too."""
        folder = self._place()
        entry = self._memory[client]
        state = entry.state
        own = {n: t for n, t in state.items() if self._holders[_pointer(t)] == 1}
        name = ""
        if own:
            self._number += 1
            name = f"{client}-{self._number}{SUFFIX}"
            folder.mkdir(parents=True, exist_ok=True)
            # A file that a crash cut short is never read: only a checkpoint written after it would name it.
            (folder / name).write_bytes(save(apart({n: t.detach().contiguous() for n, t in own.items()})))
            self._unsynced.append(folder / name)
        self._forget(client)
        shared = {n: t for n, t in state.items() if n not in own}
        self._hold(client, entry, StoredState(name, shared).within(folder))

    def _hold(self, client: int, entry: Entry, stored: StoredState) -> None:
        entry.state = stored
        self._disk[client] = entry, stored
        for pointer, size in _storages(stored.shared).items():
            self.used_bytes += size if not self._holders[pointer] else 0
            self._holders[pointer] += 1

    def _place(self) -> Path:
        if self.folder is None:
            raise StoreError("these client states lie in files: go on in the run's folder")
        return self.folder

    def _files(self) -> Iterator[Path]:
        return iter(()) if self.folder is None else self.folder.glob(f"*{SUFFIX}")


def _pointer(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _storages(state: Mapping[str, Tensor]) -> dict[int, int]:
    """Address -> bytes of the memory that a state keeps alive."""
    return {_pointer(t): t.untyped_storage().nbytes() for t in state.values()}


def whole(states: ClientStates) -> ClientStates:
    """A snapshot with all its files read, for who has no access to them."""
    return {c: s.read() if isinstance(s, StoredState) else s for c, s in states.items()}


def _names(states: ClientStates) -> set[str]:
    return {s.file for s in states.values() if isinstance(s, StoredState)}


def _number(path: Path) -> int:
    text = path.stem.rpartition("-")[2]
    return int(text) if text.isdigit() else 0
