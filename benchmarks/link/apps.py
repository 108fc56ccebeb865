"""The two app bundles of the benchmark, written where Flower's Control API can take them."""

from __future__ import annotations

from pathlib import Path

PROJECT = """\
[project]
name = "ssfl-link"
version = "1.0.0"
description = "benchmark"
license = "MIT"

[tool.flwr.app]
publisher = "ssfl"

[tool.flwr.app.components]
serverapp = "linkapp.main:server"
clientapp = "linkapp.main:client"

[tool.flwr.app.config]
folder = ""
sites = 0
rounds = 0
sizes = ""
result = ""
"""

OURS = """\
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid, context):
    from benchmarks.link.server_side import main as run

    run(grid, dict(context.run_config))
"""

STOCK = """\
from benchmarks.link import stock_app

server = stock_app.server_app
client = stock_app.client_app
"""


def write_bundle(folder: Path, code: str) -> Path:
    """A bundle whose code is `code`."""
    package = folder / "linkapp"
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT)
    (package / "__init__.py").write_text("")
    (package / "main.py").write_text(code)
    return folder
