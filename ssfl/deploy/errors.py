"""The deployment's error for bad input: one line that says what is wrong, where, and what is allowed."""

from __future__ import annotations

from typing import final

from ssfl.errors import UserError


class DeployError(UserError):
    """A deployment cannot be started or joined with these arguments."""


@final
class UnreachableError(DeployError):
    """The SuperLink does not answer: it is not running, or the network is down."""
