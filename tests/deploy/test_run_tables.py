"""Runs on tables of numbers, scaled or unchanged; sites whose examples do not fit the run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssfl.deploy.server.exchange import QuorumError
from ssfl.deploy.server.run import run_words
from tests.deploy.fake_fleet import listed_log
from tests.deploy.oracle import simulated_model
from tests.deploy.server_runs import DEPLOY, SITES, WORDS, answering, events, fleet_of, model


def tables(folder: Path, model_name: str, kind: type) -> tuple[str, ...]:
    """Words of a run on a table of numbers from 0 to 39, whole or not, as it is stored."""
    x: Any = np.random.default_rng(0).integers(0, 40, (90, 4)).astype(kind)
    np.savez(folder / "table.npz", train_x=x, train_y=np.arange(90) % 2)
    words = (f"dataset.name={folder / 'table.npz'}", "dataset.features=unchanged", f"model.name={model_name}")
    rest = ("dataset.partition_method=iid", "optimizer.lr=0.001", "algorithm=fedavg")
    return *words, *rest, *(word for word in WORDS if word != "preset=digits")


@pytest.mark.parametrize(("network", "kind"), [("Net", np.float32), ("Tokens", np.int32)])
@pytest.mark.parametrize("server_data", ["true", "false"])
def test_tables_may_stay_unchanged(
    network: str, kind: type, server_data: str, tmp_path: Path, home: Path
) -> None:
    """Floats and token numbers, with and without a copy at the server: the simulator's bits, no scaling."""
    words = tables(tmp_path, f"tests.deploy.own_net:{network}", kind)
    ours = [*DEPLOY, f"deploy.server_data={server_data}", f"experiment.output_dir={tmp_path / 'outputs'}"]
    folder = run_words(fleet_of(tmp_path, words), [*words, *ours], log=listed_log([]))
    assert model(folder).equal(simulated_model(words, SITES, {}))


@pytest.mark.parametrize(
    ("shape", "most", "reason"),
    [
        (
            [1 << 33],
            1_000_000,
            r"reports examples of 8\.58993e\+09 values; deploy\.max_example_values=1000000",
        ),
        ([1 << 53] * 3, 1_000_000, "reports examples of"),
        ([1 << 50], 1 << 53, r"no mlp for its examples \[1125899906842624\] \(.*alloc"),
        ([1 << 53, 1 << 20, 1 << 20], 1 << 53, "reports examples of"),
        ([1 << 53, 1, 1], 1 << 53, r"no mlp for its examples"),
    ],
)
def test_a_first_site_that_claims_huge_examples_is_one_refused_site(
    shape: list[int], most: int, reason: str, tmp_path: Path, home: Path
) -> None:
    """The run goes on with the others; the server allocates nothing, or what fails is the site's."""
    words = tables(tmp_path, "mlp", np.float32)
    fleet = fleet_of(tmp_path, words)
    fleet.sites_by_node[100].fault = answering(input_shape=shape)
    lines: list[dict[str, Any]] = []
    ours = (
        *DEPLOY,
        "deploy.server_data=false",
        f"deploy.max_example_values={most}",
        f"experiment.output_dir={tmp_path / 'outputs'}",
    )
    folder = run_words(fleet, [*words, *ours], log=listed_log(lines))
    refusals = [line["text"] for line in lines if line["event"] == "answer_refused"]
    assert refusals
    assert re.search(reason, refusals[0])
    assert "\n" not in refusals[0]
    assert [e["clients"] for e in events(folder) if e["event"] == "round"] == [2] * 4


def test_sites_whose_tables_are_not_alike_are_refused(tmp_path: Path, home: Path) -> None:
    words = tables(tmp_path, "mlp", np.float32)
    fleet = fleet_of(tmp_path, words)
    for inputs, reason in (
        ("whole", "examples are whole numbers, the run's are floats"),
        (None, "update ssfl"),
    ):
        fleet.sites_by_node[102].fault = answering(inputs=inputs)
        with pytest.raises(QuorumError, match=reason):
            run_words(fleet, [*words, *DEPLOY, "deploy.quorum=1"], log=listed_log([]))
