"""Flower's ServerApp of a deployed run: reads the run configuration and uses Flower's Grid as the transport."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ssfl.errors import UserError

app = ServerApp()

WORDS, RESUME = "words", "resume"
"""Keys of the run configuration besides those of main.py."""


def words_from(run_config: Mapping[str, Any]) -> list[str]:
    """Words as on the command line: those in `words`, then KEY=VALUE for every key that is not empty."""
    words = shlex.split(str(run_config.get(WORDS, "")))
    for key, value in run_config.items():
        if key not in (WORDS, RESUME) and value != "":
            words.append(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
    return words


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Execute one run."""
    from ssfl.deploy.server.run import run_words
    from ssfl.deploy.transport.grid import GridPort

    config = context.run_config
    try:
        run_words(GridPort(grid), words_from(config), str(config.get(RESUME, "")), str(context.run_id))
    except UserError:
        sys.tracebacklimit = 0  # Flower logs the exception: one line, without a traceback, for a user's error
        raise
