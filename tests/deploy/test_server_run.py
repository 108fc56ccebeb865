"""A whole run on the server, words to summary, over sites of this process."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from ssfl.config import ConfigError, load_config
from ssfl.deploy.errors import DeployError
from ssfl.deploy.protocol import message_bytes, messages
from ssfl.deploy.server import server_run, setup
from ssfl.deploy.server.run import run_words
from ssfl.deploy.server.run_record import load_records
from ssfl.deploy.server.setup import server_data
from ssfl.deploy.settings import DeploySettings
from ssfl.errors import UserError
from ssfl.models import ModelError
from tests.deploy.fake_fleet import FakeFleet, listed_log
from tests.deploy.oracle import check_ledger, simulated_model
from tests.deploy.server_runs import SITES, WORDS, events, fleet_of, model, words_in


def test_a_run_ends_as_the_simulation_does(tmp_path: Path, home: Path) -> None:
    lines: list[dict[str, Any]] = []
    folder = run_words(fleet_of(tmp_path), words_in(tmp_path), log=listed_log(lines))
    assert model(folder).equal(simulated_model(WORDS, SITES, {}))
    check_ledger(events(folder), 4)
    (record,) = load_records(home)
    assert (record.status, record.round, record.folder) == ("finished", 4, str(folder))
    assert not list((tmp_path / "site-0").glob("*/*.safetensors")), "a finished run leaves nothing at a site"
    assert {line["run"] for line in lines if "run" in line} == {record.run}


def test_the_network_is_built_once_for_sites_that_are_alike(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[object] = []
    layout_of = setup.layout_of

    def counted(config: Any, data: Any, first: messages.Joined) -> Any:
        built.append(first.input_shape)
        return layout_of(config, data, first)

    monkeypatch.setattr(server_run, "layout_of", counted)
    run_words(fleet_of(tmp_path), words_in(tmp_path, "training.comm_round=1"), log=listed_log([]))
    assert len(built) == 1


def test_a_folder_that_cannot_be_made_ends_the_run_in_one_line(tmp_path: Path, home: Path) -> None:
    (tmp_path / "outputs").write_text("a file")
    with pytest.raises(UserError, match=r"^experiment\.output_dir=.*outputs: .*a file exists where a folder"):
        run_words(fleet_of(tmp_path), words_in(tmp_path), log=listed_log([]))
    (record,) = load_records(home)
    assert record.status == "failed"
    assert record.reason.startswith("experiment.output_dir=")


def test_prometheus_can_scrape_a_run(tmp_path: Path, home: Path) -> None:
    fleet, found = fleet_of(tmp_path), list[str]()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    send = fleet.send

    def scraping(outgoing: Any, deadline_seconds: float) -> Any:
        if any(isinstance(w := message_bytes.unpack(m), messages.Work) and w.round == 4 for _, m in outgoing):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                found.append(answer.read().decode())
        return send(outgoing, deadline_seconds)

    fleet.send = scraping  # type: ignore[method-assign]
    folder = run_words(fleet, words_in(tmp_path, f"deploy.metrics_port={port}"), log=listed_log([]))
    (run,) = load_records(home)
    rounds = [e for e in events(folder) if e["event"] == "round"][:3]
    values = {
        k: float(v) for k, v in (line.rsplit(" ", 1) for line in found[0].splitlines() if line[:1] != "#")
    }
    label = f'{{phase="train",run="{run.run}"}}'
    assert values[f"ssfl_exchanges_total{label}"] == 3
    assert values[f"ssfl_downlink_bytes_total{label}"] == sum(e["downlink_bytes"] for e in rounds)
    assert values[f'ssfl_live_sites{{run="{run.run}"}}'] == SITES
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)


BAD_WORDS = (
    "training.epochs=0",
    "deploy.quorum=2",
    "no.such.key=1",
    "dataset.validation_portion=0.1",
)


@pytest.mark.parametrize("word", BAD_WORDS)
def test_bad_words_are_refused_with_a_record(word: str, tmp_path: Path, home: Path) -> None:
    """No run folder is written; `ssfl deploy run` shows the record's reason, for which it waits."""
    with pytest.raises((ConfigError, DeployError), match=word.partition("=")[0]) as found:
        run_words(FakeFleet(), words_in(tmp_path, word), flower_run="7")
    assert not (tmp_path / "outputs").exists()
    (record,) = load_records(home)
    assert (record.status, record.flower_run, record.reason) == ("failed", "7", str(found.value))


def test_an_unknown_network_is_refused_before_sites_join(tmp_path: Path, home: Path) -> None:
    with pytest.raises(ModelError, match="model 'nosuch' is unknown"):
        run_words(FakeFleet(), words_in(tmp_path, "model.name=nosuch"))
    (record,) = load_records(home)
    assert (record.status, record.sites) == ("failed", None)


def test_rows_are_held_out_in_simulations_only(tmp_path: Path, home: Path) -> None:
    with pytest.raises(DeployError, match=r"dataset\.validation_portion=0\.2: must be 0: only simulations"):
        run_words(
            fleet_of(tmp_path), words_in(tmp_path, "dataset.validation_portion=0.2"), log=listed_log([])
        )


def test_a_known_sets_constants_are_for_runs_that_name_it() -> None:
    config = load_config([])
    assert server_data(config, DeploySettings(), named=True).scaling is not None
    assert server_data(config, DeploySettings(), named=False).scaling is None
