"""The deployment's error for bad input: one line that says what is wrong, where, and what is allowed."""

from __future__ import annotations

from ssfl.errors import UserError


class DeployError(UserError):
    """A deployment cannot be started or joined with these arguments."""
