"""Named random streams: a draw depends on its name, never on what was drawn before it."""

from __future__ import annotations

import hashlib
import json

import torch


def stream(seed: int, *path: str | int) -> torch.Generator:
    """A CPU generator whose state depends only on the seed and `path`, not on the order of execution.

    `stream(7, "batch", client, round)` gives the same draws whether clients run one by one, batched, in
    worker processes, on a remote site or after a resume.
    """
    name = json.dumps([seed, *path]).encode()
    digest = hashlib.blake2b(name, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
