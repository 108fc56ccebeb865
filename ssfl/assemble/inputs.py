"""Digests of a run's data and network: a resume with other data or another network is refused."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from ssfl.assemble.build import RunSetup
from ssfl.assemble.failures import start_command
from ssfl.core.layout import Layout
from ssfl.data.arrays import Arrays
from ssfl.errors import UserError

INPUTS = "inputs"
"""Name of the digests in a checkpoint."""
_LIBRARIES = ("torch.", "ssfl.", "builtins")
"""Packages whose classes are not the user's code."""


@final
class ChangedInputError(UserError):
    """The data or the network differs from that at the start of the run."""


def input_digests(setup: RunSetup) -> dict[str, str]:
    """Digests of the data set and of the network."""
    return {
        "data": data_digest(setup.federation.arrays),
        "network": network_digest(setup.module, setup.layout),
    }


def check_inputs(kept: Any, setup: RunSetup, digests: Mapping[str, str], folder: Path) -> None:
    """Raises ChangedInputError if a checkpoint's digests (None: it has none) differ from the current ones."""
    if not isinstance(kept, Mapping):
        return
    config = setup.config
    names = {"data": f"dataset.name={config.dataset.name}", "network": f"model.name={config.model.name}"}
    for what, name in names.items():
        if kept.get(what, digests[what]) != digests[what]:
            raise ChangedInputError(
                f"{folder}: the {what} ({name}) changed since this run began; restore the old {what} to resume, or "
                f"start again with: {start_command(folder)}"
            )


def data_digest(arrays: Arrays) -> str:
    """Digest of all rows, labels and sites, in order, and of the class names."""
    digest = hashlib.blake2b(repr(arrays.class_names).encode(), digest_size=12)
    for name in ("train_x", "train_y", "test_x", "test_y", "train_site", "test_site"):
        tensor = getattr(arrays, name)
        digest.update(name.encode())
        if isinstance(tensor, Tensor):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def network_digest(module: nn.Module, layout: Layout) -> str:
    """Digest of the layout and of the source of the user's classes, without comments and line breaks."""
    own = {kind for layer in module.modules() for kind in type(layer).__mro__}
    digest = hashlib.blake2b(layout.digest, digest_size=12)
    for kind in sorted(own, key=lambda k: (k.__module__, k.__qualname__)):
        if not f"{kind.__module__}.".startswith(_LIBRARIES) and kind is not object:
            digest.update(_meaning(kind).encode())
    return digest.hexdigest()


def _meaning(kind: type) -> str:
    try:
        return ast.dump(ast.parse(textwrap.dedent(inspect.getsource(kind))))
    except (OSError, TypeError, SyntaxError):  # defined without a source file
        return kind.__qualname__
