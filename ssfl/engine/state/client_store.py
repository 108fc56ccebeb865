"""Client states between rounds: in memory up to a budget, the rest in files of the run folder.

A tensor that several clients share (a broadcast mask) is in memory once. A file is written once and never changed, so a
checkpoint names it instead of storing the state again; files that neither the clients nor a kept checkpoint need are
removed after the next checkpoint.
"""

from __future__ import annotations

import json
import os
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ssfl.core.payloads import Payload
from ssfl.engine.client.memory import ClientMemories, ClientMemory, MemoryHandle
from ssfl.engine.state.serialization import KEPT_CHECKPOINTS, NOT_SAVED, Packer, RecordError, apart, unpack
from ssfl.engine.state.typed import check_types
from ssfl.errors import UserError
from ssfl.output import sync_folder, write_or_remove
from ssfl.wire.parts import PARTS

SUFFIX = ".safetensors"
READ_ERRORS = (OSError, SafetensorError, LookupError, TypeError, ValueError, AttributeError, RecursionError)
"""Errors of reading a file that is incomplete, damaged, or of another kind."""
MEMORY_RECORDS = (ClientMemory, Payload, *PARTS)


class StoreError(UserError):
    """A client's memory cannot be read; the message names the file and the reason."""


@final
@dataclass(frozen=True)
class StoredMemory:
    """A client's memory on disk; checkpoints store this handle, and worker processes read the file themselves."""

    file: str
    """File name in the store's folder; empty if all tensors are shared."""
    body: str
    """The memory as `Packer` writes it, JSON: its tensors are names in `file` and in `shared`."""
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors that are shared with other clients; not in the file."""
    folder: Path = field(default=Path(), metadata=NOT_SAVED)
    """The file's folder; not part of a checkpoint, because a run folder may be moved."""

    def load(self) -> ClientMemory:
        """The memory. Its tensors map the file, so the kernel may free their pages when memory is short.

        Raises StoreError if the file is missing or damaged.
        """
        path = self.folder / self.file
        try:
            if Path(self.file).name != self.file:
                raise RecordError("not the name of a file in this folder")
            tensors = dict(self.shared)
            if self.file:
                with safe_open(path, framework="pt") as file:
                    tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            memory = unpack(json.loads(self.body), tensors, MEMORY_RECORDS)
            check_types(memory)
        except READ_ERRORS as error:
            raise StoreError(
                f"{path}: this client's state cannot be read ({error}); start the run again from the beginning"
            ) from error
        assert isinstance(memory, ClientMemory)
        return memory


class ClientStore:
    """Memories by client number; above `memory_bytes` the least recently used ones are written to `folder`.

    memory_bytes: maximum size in memory; None, or no folder: no limit.
    """

    def __init__(self, folder: Path | None = None, memory_bytes: int | None = None) -> None:
        self.folder = folder
        self.budget = memory_bytes if folder is not None else None
        self._memory: OrderedDict[int, ClientMemory] = OrderedDict()
        self._disk: dict[int, StoredMemory] = {}
        self._holders: Counter[int] = Counter()
        self._saved: deque[set[str]] = deque(maxlen=KEPT_CHECKPOINTS)
        self._unsynced: list[Path] = []
        self._number = 0
        self.used_bytes = 0
        """Bytes of the client memories held in this process, shared tensors included."""

    def get(self, client: int) -> MemoryHandle:
        """The client's memory; empty at first. Raises StoreError if its file is missing or damaged."""
        if client in self._disk:
            self._disk[client].load()  # maps the file: errors in it are reported here
            return self._disk[client]
        if client in self._memory:
            self._memory.move_to_end(client)
            return self._memory[client]
        return ClientMemory()

    def put(self, client: int, memory: ClientMemory) -> None:
        """Set a client's memory; memories of other clients may be written to disk."""
        self._forget(client)
        self._memory[client] = memory
        self._count(_storages(_tensors(memory)))
        while self.budget is not None and self.used_bytes > self.budget and self._memory:
            self._spill(next(iter(self._memory)))

    def snapshot(self) -> ClientMemories:
        """All current memories, by client; later changes do not affect it. Tensors are never changed in place."""
        both: dict[int, MemoryHandle] = {**self._memory, **self._disk}
        return {client: both[client] for client in sorted(both)}

    def restore(self, memories: ClientMemories) -> None:
        """Restore a snapshot of this store's folder."""
        self._memory.clear()
        self._disk.clear()
        self._holders.clear()
        self.used_bytes = 0
        self._number = max([self._number, *(_number(p) for p in self._files())])
        if names := _names(memories):
            self._saved.append(names)
        for client, memory in memories.items():
            if isinstance(memory, StoredMemory):
                self._hold(client, replace(memory, folder=self._place()))
            else:
                self.put(client, memory.load())

    def flush(self) -> None:
        """Before a checkpoint is written: synchronise the files that it names, for a power failure."""
        for path in self._unsynced:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        for folder in {path.parent for path in self._unsynced}:
            sync_folder(folder)
        self._unsynced.clear()

    def keep(self, memories: ClientMemories) -> None:
        """After a checkpoint of `memories`: remove the files that no kept checkpoint and no client needs."""
        self._saved.append(_names(memories))
        needed = {stored.file for stored in self._disk.values()}.union(*self._saved)
        for path in self._files():
            if path.name not in needed:
                path.unlink(missing_ok=True)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────
    def _count(self, storages: Mapping[int, int]) -> None:
        for pointer, size in storages.items():
            self.used_bytes += size if not self._holders[pointer] else 0
            self._holders[pointer] += 1

    def _forget(self, client: int) -> None:
        tensors: Mapping[str, Tensor] = {}
        if client in self._disk:
            tensors = self._disk.pop(client).shared
        elif client in self._memory:
            tensors = _tensors(self._memory.pop(client))
        for pointer, size in _storages(tensors).items():
            self._holders[pointer] -= 1
            if not self._holders[pointer]:
                del self._holders[pointer]
                self.used_bytes -= size

    def _spill(self, client: int) -> None:
        """Write one memory to disk, except tensors shared with other clients."""
        folder, packer = self._place(), Packer()
        body = packer.pack(self._memory[client])
        own = {n: t for n, t in packer.tensors.items() if self._holders[_pointer(t)] <= 1}
        name = ""
        if own:
            self._number += 1
            name = f"{client}-{self._number}{SUFFIX}"
            folder.mkdir(parents=True, exist_ok=True)
            # An incomplete file (after a crash) is never read: only a checkpoint written later would name it.
            write_or_remove(folder / name, save(apart(own)))
            self._unsynced.append(folder / name)
        self._forget(client)
        shared = {n: t for n, t in packer.tensors.items() if n not in own}
        self._hold(client, StoredMemory(name, json.dumps(body), shared, folder))

    def _hold(self, client: int, stored: StoredMemory) -> None:
        self._disk[client] = stored
        self._count(_storages(stored.shared))

    def _place(self) -> Path:
        if self.folder is None:
            raise StoreError("these client states are in files: continue in the run's folder")
        return self.folder

    def _files(self) -> Iterator[Path]:
        return iter(()) if self.folder is None else self.folder.glob(f"*{SUFFIX}")


def whole(memories: ClientMemories) -> ClientMemories:
    """A snapshot with all files read into memory, for a process without access to the files."""
    return {client: _copied(m.load()) if isinstance(m, StoredMemory) else m for client, m in memories.items()}


def _copied(memory: ClientMemory) -> ClientMemory:
    packer = Packer()
    body = packer.pack(memory)
    copies = {name: tensor.clone() for name, tensor in packer.tensors.items()}
    out = unpack(body, copies, MEMORY_RECORDS)
    assert isinstance(out, ClientMemory)
    return out


def _tensors(memory: ClientMemory) -> Mapping[str, Tensor]:
    packer = Packer()
    packer.pack(memory)
    return packer.tensors


def _pointer(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _storages(tensors: Mapping[str, Tensor]) -> dict[int, int]:
    """Address -> bytes of the memory that tensors keep alive."""
    return {_pointer(t): t.untyped_storage().nbytes() for t in tensors.values()}


def _names(memories: ClientMemories) -> set[str]:
    return {m.file for m in memories.values() if isinstance(m, StoredMemory)}


def _number(path: Path) -> int:
    text = path.stem.rpartition("-")[2]
    return int(text) if text.isdigit() else 0
