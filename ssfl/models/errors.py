"""The error of building a network."""

from __future__ import annotations

from typing import final

from ssfl.errors import UserError


@final
class ModelError(UserError):
    """A network cannot be built with these arguments."""
