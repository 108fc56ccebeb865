"""Fixtures of the deployment's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssfl.deploy.server.run_record import HOME_VARIABLE


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path / "home"
