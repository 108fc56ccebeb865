"""The keys of `flwr run .` in pyproject.toml, those of the bundle: `python -m tests.deploy.app_keys` writes them."""

from __future__ import annotations

from ssfl.deploy.federation.app_bundle import config_lines
from tests.support.paths import ROOT

BEGIN, END = "# keys: made by python -m tests.deploy.app_keys", "# end of keys"
DOCUMENT = ROOT / "pyproject.toml"


def with_keys(text: str) -> str:
    """pyproject.toml with the keys as they are now."""
    before, rest = text.split(BEGIN, 1)
    return "\n".join([before + BEGIN, *config_lines(), END + rest.split(END, 1)[1]])


if __name__ == "__main__":
    DOCUMENT.write_text(with_keys(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
