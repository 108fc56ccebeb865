"""The protocol by which a contestant (a child process) runs one round at a time. Needs the standard library only.

The child announces "ready" before every round, and may send one note before the first.
The parent's clock runs from "round" to the next "ready".
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

NOTE = "note "
"""The beginning of a note's line."""


class Gate:
    """The child's side, over two inherited file descriptors."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._commands = os.fdopen(read_fd, "r")
        self._answers = os.fdopen(write_fd, "w", buffering=1)

    def note(self, text: str) -> None:
        """Send a text for the names of this contestant's figures; before the first round."""
        self._answers.write(f"{NOTE}{text}\n")

    def wait(self, accuracy: Callable[[], float]) -> bool:
        """Wait for a command; True for another round. Sends the global model's test accuracy when it is requested."""
        self._answers.write("ready\n")
        for command in self._commands:
            if command == "round\n":
                return True
            if command == "accuracy\n":
                self._answers.write(f"{accuracy()!r}\n")
        return False

    def serve(self, round_: Callable[[], object], accuracy: Callable[[], float]) -> None:
        """Run rounds until the parent closes the pipe."""
        while self.wait(accuracy):
            round_()


def contestant_options(description: str) -> argparse.ArgumentParser:
    """Options of every contestant: the workload, the gate, and the number of cores."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("workload")
    parser.add_argument("--gate", nargs=2, type=int, required=True, metavar=("READ", "WRITE"))
    parser.add_argument("--cores", type=int, default=2)
    return parser
