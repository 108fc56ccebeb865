"""The bundle for `flwr run`: every key of main.py, and the checkout is such a bundle too."""

from __future__ import annotations

import sys
import traceback
import types
from pathlib import Path

import pytest

from ssfl.deploy.federation.app_bundle import config_keys, project_text, write_app
from tests.support.paths import ROOT

pytest.importorskip("flwr", reason="needs Flower: bash setup.sh --deploy")
if sys.version_info < (3, 11):
    pytest.skip("needs Python 3.11", allow_module_level=True)

import tomllib
from flwr.cli.build import build_fab_from_disk
from flwr.common.config import flatten_dict, fuse_dicts, get_fab_config, parse_config_args

from ssfl.config import load_config
from ssfl.deploy import server_app
from ssfl.deploy.errors import DeployError
from ssfl.deploy.server import run
from ssfl.deploy.server_app import words_from
from ssfl.deploy.transport import grid
from tests.deploy import app_keys


def test_the_bundle_takes_every_key_and_sets_none(tmp_path: Path) -> None:
    config = tomllib.loads(project_text())["tool"]["flwr"]["app"]["config"]
    assert set(config_keys()) < set(config)
    assert {"training.comm_round", "model.dense_ratio", "deploy.quorum", "experiment.seed"} <= set(config)
    assert set(config.values()) == {""}
    assert words_from(config) == []


def test_keys_become_the_words_of_main() -> None:
    run_config = {
        "words": "preset=digits 'dataset.name=a b'",
        "training.comm_round": 5,
        "deploy.server_data": True,
        "resume": "",
    }
    words = words_from(run_config)
    assert words == ["preset=digits", "dataset.name=a b", "training.comm_round=5", "deploy.server_data=true"]
    assert load_config(["preset=digits", words[2]]).training.comm_round == 5


def test_the_checkout_is_the_same_app(tmp_path: Path) -> None:
    written = write_app(tmp_path)
    for path in (written / "ssfl_app").iterdir():
        assert (ROOT / "ssfl_app" / path.name).read_text() == path.read_text()
    ours, theirs = (
        tomllib.loads((root / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
        for root in (ROOT, written)
    )
    assert ours["components"] == theirs["components"]
    assert ours["config"] == theirs["config"]


def test_the_keys_in_pyproject_are_made_from_the_table() -> None:
    text = app_keys.DOCUMENT.read_text(encoding="utf-8")
    assert app_keys.with_keys(text) == text, "python -m tests.deploy.app_keys writes the keys"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Flower's own dependencies
@pytest.mark.parametrize("bundle", ["checkout", "written"])
def test_flower_accepts_every_key_and_no_other(bundle: str, tmp_path: Path) -> None:
    """With Flower's own functions: the file that `flwr run` sends, and the configuration that a ServerApp gets."""
    folder = ROOT if bundle == "checkout" else write_app(tmp_path)
    app = get_fab_config(build_fab_from_disk(folder))["tool"]["flwr"]["app"]
    defaults = flatten_dict(app["config"])
    given = parse_config_args(['training.comm_round=3 preset="digits" deploy.server_data=true'])
    words = ["preset=digits", "training.comm_round=3", "deploy.server_data=true"]
    assert sorted(words_from(fuse_dicts(defaults, given))) == sorted(words)
    with pytest.raises(ValueError, match=r"deploy\.quorom"):
        fuse_dicts(defaults, parse_config_args(["deploy.quorom=1"]))


def test_a_users_error_is_logged_by_flower_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise DeployError("training.epochs=0: must be at least 1")

    monkeypatch.setattr(run, "run_words", refuse)
    monkeypatch.setattr(grid, "GridPort", lambda grid: grid)
    monkeypatch.setattr(sys, "tracebacklimit", 1000, raising=False)
    context = types.SimpleNamespace(run_config={}, run_id=1)
    with pytest.raises(DeployError) as caught:
        server_app.main(None, context)  # type: ignore[arg-type]
    lines = "".join(traceback.format_exception(caught.value)).splitlines()
    assert lines[-1].endswith("DeployError: training.epochs=0: must be at least 1")
    assert not any(line.startswith("  File") for line in lines)
