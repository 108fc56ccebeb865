"""Binds the carried buffers of a module to a flat vector and restores its constant buffers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ssfl.core.layout import Layout

_Place = tuple[dict[str, Tensor | None], str]
"""A layer's dictionary of buffers, and a name in it."""


class _Kept(NamedTuple):
    """A constant buffer: its place, the tensor, its version at the start, and its values."""

    place: _Place
    tensor: Tensor
    version: int
    values: Tensor


class ModuleBuffers:
    """Carried buffers are views of a vector's tail, under all their names; constant ones are restored at each `begin`.

    A forward pass may change a buffer in place or assign a new tensor; both are collected.
    """

    def __init__(self, module: nn.Module, layout: Layout) -> None:
        self._layout = layout
        places: dict[int, list[_Place]] = {}
        tensors: dict[int, Tensor] = {}
        for layer in module.modules():
            for leaf, buffer in layer._buffers.items():
                if buffer is not None:
                    places.setdefault(id(buffer), []).append((layer._buffers, leaf))
                    tensors[id(buffer)] = buffer
        ids = {name: id(buffer) for name, buffer in module.named_buffers()}
        carried = [name for name, trained in zip(layout.names, layout.trained, strict=True) if not trained]
        self._places = {name: places[ids[name]] for name in carried}
        self._whole = {name: tensors[ids[name]] for name in layout.whole}
        constant = tensors.keys() - {ids[name] for name in carried}
        self._kept = [
            _Kept(place, tensors[i], tensors[i]._version, tensors[i].clone())
            for i in places
            if i in constant
            for place in places[i]
        ]
        self._views: dict[str, Tensor] = {}

    def bind(self, tail: Tensor) -> None:
        """Make every carried float buffer a view of `tail` [P - T]."""
        self._views = self._layout.carried(tail)
        for name, view in self._views.items():
            self._place(name, self._whole.get(name, view))

    def begin(self) -> None:
        """Set all buffers for the start of a client's work, after new values were copied into the tail."""
        for name, view in self._views.items():
            if name in self._whole:
                self._whole[name].copy_(view.round())
            self._place(name, self._whole.get(name, view))
        for number, (place, tensor, version, values) in enumerate(self._kept):
            holder, leaf = place
            if tensor._version != version:
                tensor.copy_(values)
                self._kept[number] = _Kept(place, tensor, tensor._version, values)
            holder[leaf] = tensor

    def collect(self) -> None:
        """Copy buffers that the forward pass replaced by new tensors back to the tail."""
        for name, view in self._views.items():
            for holder, leaf in self._places[name]:
                own = holder[leaf]
                if own is not None and own is not view:
                    view.copy_(own.detach())

    def _place(self, name: str, tensor: Tensor) -> None:
        for holder, leaf in self._places[name]:
            holder[leaf] = tensor
