"""The deployment's error for bad input: one line that says what is wrong, where, and what is allowed."""

from __future__ import annotations

from typing import final

from ssfl.errors import UserError


class DeployError(UserError):
    """A deployment cannot be started or joined with these arguments."""


@final
class UnreachableError(DeployError):
    """The SuperLink does not answer: it is not running, or the network is down."""


def reason_of(error: Exception) -> str:
    """The reason of an error in one phrase, without the path that the message names already."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    return str(error)
