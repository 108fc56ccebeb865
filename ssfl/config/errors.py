"""Errors and warnings of the configuration."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import final

from ssfl.errors import UserError


@final
class ConfigError(UserError):
    """A configuration that cannot be run. Its text is one line: key, value, what is allowed.

    `key` is the dotted key at fault, or the whole argument if it contains no key.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(" ".join(message.split()))
        self.key = key


@final
class ConfigWarning(UserWarning):
    """A key was set that the run does not read."""


def near_match(word: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' for the closest known word; empty if none is close."""
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if not close:
        # A key given under the wrong section (lr instead of optimizer.lr) is close in its last part only.
        tail = word.rsplit(".", 1)[-1]
        close = [name for name in words if name.rsplit(".", 1)[-1] == tail][:1]
    return f" (did you mean {close[0]}?)" if close else ""
