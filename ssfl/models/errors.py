"""The one error that building a network raises."""

from __future__ import annotations

from typing import final


@final
class ModelError(ValueError):
    """A network that cannot be built as asked: what, where, what is allowed, in one line."""
