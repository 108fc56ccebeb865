"""The app bundle for `flwr run`: it imports the installed ssfl, and its configuration has the keys of main.py.

The bundle only names the code that is installed on the server. Sites of this project never receive it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import ssfl
from ssfl.algorithms.table import METHODS
from ssfl.config.keys import common_keys, method_keys
from ssfl.deploy.settings import PREFIX, DeploySettings

PUBLISHER = "ssfl"
SERVER_APP = "ssfl_app.server:app"
CLIENT_APP = "ssfl_app.client:app"


def config_keys() -> list[str]:
    """All configuration keys of a run, dotted: those of main.py, then deploy.*."""
    every = dict.fromkeys([*common_keys(), *(key for method in METHODS for key in method_keys(method))])
    return [*every, *(f"{PREFIX}{f.name}" for f in dataclasses.fields(DeploySettings))]


def config_lines() -> list[str]:
    """TOML lines of [tool.flwr.app.config]: every key with an empty value, which means not set."""
    groups = ("words", "resume", "algorithm", "preset")
    return [f'"{key}" = ""' for key in (*groups, *config_keys())]


def project_text() -> str:
    """The bundle's pyproject.toml."""
    return "\n".join(
        [
            "[project]",
            'name = "ssfl-deployment"',
            f'version = "{ssfl.__version__}"',
            'description = "Salient sparse federated learning between sites"',
            'license = "MIT"',
            "",
            "[tool.flwr.app]",
            f'publisher = "{PUBLISHER}"',
            "",
            "[tool.flwr.app.components]",
            f'serverapp = "{SERVER_APP}"',
            f'clientapp = "{CLIENT_APP}"',
            "",
            "[tool.flwr.app.config]",
            *config_lines(),
            "",
        ]
    )


def write_app(folder: Path) -> Path:
    """Write the bundle into `folder`, for `flwr run`. Returns the folder."""
    package = folder / "ssfl_app"
    package.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(project_text(), encoding="utf-8")
    (package / "__init__.py").write_text('"""ssfl between sites."""\n', encoding="utf-8")
    for name in ("server", "client"):
        lines = (
            '"""The installed ssfl does the work."""',
            f"from ssfl.deploy import {name}_app",
            f"app = {name}_app.app",
        )
        (package / f"{name}.py").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return folder
