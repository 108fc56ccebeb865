"""Closed sets of words (`Literal`s), checked at run time: scripts and notebooks run without a type checker."""

from __future__ import annotations

from typing import Any, get_args


def check_word(name: str, word: str, allowed: Any) -> None:
    """Raises ValueError unless `word`, the value of `name`, is one of the words of the Literal `allowed`."""
    words = get_args(allowed)
    if word not in words:
        raise ValueError(f"{name}={word!r}: allowed are {', '.join(words)}")
