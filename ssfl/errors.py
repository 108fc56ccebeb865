"""The base class of errors in user input: one line, which the command line prints before it exits with code 2."""

from __future__ import annotations


class UserError(ValueError):
    """An error in user input: what is wrong, where, what is allowed, and what to do; one line.

    Only `what` is required.
    """

    def __init__(self, what: str, *, where: str = "", allowed: str = "", remedy: str = "") -> None:
        line = f"{where}: {what}" if where else what
        line += f"; allowed: {allowed}" if allowed else ""
        line += f"; {remedy}" if remedy else ""
        super().__init__(" ".join(line.split()))
        self.what, self.where, self.allowed, self.remedy = what, where, allowed, remedy
