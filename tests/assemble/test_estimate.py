"""`ssfl estimate`: the bytes that a run then sends, phase by phase, without training."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from ssfl.assemble.build import setup_of
from ssfl.assemble.estimate import PhaseTraffic, estimate_text, share_of_differences, traffic_of
from ssfl.cli import main
from ssfl.config import CommunicationConfig, load_config
from ssfl.config.schema import Profile
from ssfl.engine.simulate import simulate
from ssfl.report.tables.units import size_text

WORDS = ["preset=digits", "training.comm_round=3", "training.epochs=1"]


def by_phase(words: list[str], profile: Profile) -> dict[str, PhaseTraffic]:
    setup = setup_of(load_config([*WORDS, *words]))
    return {p.phase: p for p in traffic_of(setup, CommunicationConfig(profile=profile))}


@pytest.mark.parametrize("profile", ["exact", "balanced", "small"])
def test_the_estimate_is_what_a_run_sends(profile: Profile) -> None:
    """Exact if sizes are fixed; within 15 % if they depend on the training."""
    setup = setup_of(load_config([*WORDS, f"communication.profile={profile}"]))
    result = simulate(
        setup.algorithm, setup.module, setup.federation, rounds=3, seed=setup.context.seed, wire=setup.wire
    )
    estimated = {p.phase: p for p in traffic_of(setup, CommunicationConfig(profile=profile))}
    seen = {event["phase"]: event for event in result.events if event["event"] in ("round", "phase")}
    assert estimated.keys() == seen.keys()
    for phase, event in seen.items():
        ours = estimated[phase]
        assert ours.clients == event["clients"]
        # These depend on the training: the mask, and the distribution of changes and scores.
        near = 1e-9 if profile == "exact" and phase != "store_mask" else 0.15
        assert ours.down_bytes == pytest.approx(event["downlink_bytes"] / event["clients"], rel=near)
        assert ours.up_bytes == pytest.approx(event["uplink_bytes"] / event["clients"], rel=near)
    assert estimated["train"].exchanges == 3


def test_clients_that_do_not_answer_send_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Two rounds of FedAvg with 20 clients, of whom a quarter does not answer: float32 values both ways."""
    words = ["preset=digits", "algorithm=fedavg", "training.comm_round=2", "training.missing_replies=0.25"]
    setup = setup_of(load_config(words))
    (phase,) = traffic_of(setup, CommunicationConfig())
    assert phase.run_bytes(0.75) == pytest.approx(2 * phase.clients * 1.75 * phase.down_bytes, rel=1e-3)
    assert main(["estimate", *words]) == 0
    assert "75% of the clients answer (training.missing_replies)" in capsys.readouterr().out


def test_warm_up_rounds_and_fine_tuning_are_phases_of_their_own() -> None:
    warm = by_phase(["algorithm.params.warmup_rounds=2", "training.comm_round=30"], "exact")
    assert (warm["warmup"].exchanges, warm["train"].exchanges) == (1, 29)
    tuned = by_phase(["algorithm=fedavg_ft"], "exact")
    assert (tuned["fine_tune"].timed, tuned["fine_tune"].clients) == (False, 20)


def test_first_contact_is_counted_once_a_client() -> None:
    """Local training sends the initial model to each client once, and no model later.

    All 20 clients train in every round, or (fair_budget) half of them: then 3 rounds contact 17.5 on average.
    """
    phases = by_phase(["algorithm=local"], "exact")
    assert phases["train, first time"].run_bytes(1.0) == pytest.approx(20 * 117_073, rel=0.001)
    fair = by_phase(["algorithm=local", "algorithm.params.fair_budget=true"], "exact")
    assert fair["train, first time"].run_bytes(1.0) == pytest.approx(17.5 * 117_073, rel=0.001)
    assert phases["train"].down_bytes == 0


def test_peers_are_those_of_the_whole_run() -> None:
    phases = by_phase(["algorithm=dispfl"], "exact")
    assert phases["train"].peer_bytes == pytest.approx(10 * phases["train"].up_bytes, rel=0.01)


def test_the_table_has_every_profile_and_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "communication.uplink=bf16",
        "communication.link_mbits=8",
        "communication.link_round_trip_ms=1000",
    ]
    assert main(["estimate", *WORDS, *words]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"exact +balanced +small +as set", shown)
    assert "at 8 Mbit/s, 1000 ms round trip" in " ".join(shown.split())
    plain = load_config(WORDS)
    assert "as set" not in estimate_text(plain, setup_of(plain), {"exact": [], "small": []})


def test_the_time_on_a_link_is_bits_over_rate_and_a_round_trip_a_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """59.2 kB down and up at 1 Mbit/s take 0.947 s, and half a second of round trip."""
    words = ["communication.link_mbits=1", "communication.link_round_trip_ms=500", "training.comm_round=1"]
    main(["estimate", *WORDS, *words])
    line = next(x for x in capsys.readouterr().out.splitlines() if x.strip().startswith("a round at"))
    seconds = float(line.split("trip")[1].split()[0])
    per_round = by_phase([], "exact")["train"].client_bytes
    assert seconds == pytest.approx(per_round * 8 / 1e6 + 0.5, abs=0.006)


def test_a_published_set_need_not_be_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand: 122,890 parameters in 100 clients' scores and mask and 10 a round. Nothing is fetched or written."""
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    words = ["preset=cifar10_converged", f"dataset.data_dir={tmp_path}"]
    assert main(["estimate", *words, "algorithm=fedavg"]) == 0
    shown = capsys.readouterr()
    assert f"{2 * 4 * 122_890 * 10 * 360 / 1e9:.2f} GB" in shown.out
    assert shown.err.endswith(
        "counted with the 50,000 training and 10,000 test rows of the published cifar10\n"
    )
    assert main(["partition", *words]) == 0
    assert "examples per client: 500 to 500" in capsys.readouterr().out
    assert main(["partition", *words, "dataset.partition_method=iid"]) == 2
    assert main(["run", *words]) == 2
    assert "no file" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_sizes_have_units() -> None:
    assert [size_text(n) for n in (24, 3_700, 22_370_000, 9e9)] == ["24 B", "3.7 kB", "22.37 MB", "9.00 GB"]


@pytest.mark.parametrize("frac", [0.5, 0.1])
def test_differences_on_the_downlink_go_to_clients_that_hold_a_version(frac: float) -> None:
    """Against a run: with few clients a round hardly any of them holds a version that the server remembers."""
    rounds = 12
    words = ["preset=digits", f"training.comm_round={rounds}", "training.epochs=1", f"training.frac={frac}"]
    setup = setup_of(
        load_config([*words, "communication.profile=small", "communication.downlink_versions=2"])
    )
    result = simulate(
        setup.algorithm, setup.module, setup.federation, rounds, seed=setup.context.seed, wire=setup.wire
    )
    sent = sum(event["downlink_bytes"] for event in result.events if event["event"] == "round")
    phases = traffic_of(setup, setup.config.communication)
    whole = traffic_of(setup, CommunicationConfig(profile="small"))
    assert [p.phase for p in phases] == [p.phase for p in whole]  # rows of one table
    train = phases[-1]
    assert train.down_bytes * train.clients * rounds == pytest.approx(sent, rel=0.1)


def test_the_share_of_differences() -> None:
    """Everyone in every round: all but the first. Nobody remembered: none. One client of many: hardly any."""
    assert share_of_differences(clients=10, per_round=10, rounds=20, versions=1) == pytest.approx(19 / 20)
    assert share_of_differences(10, 10, 20, 0) == 0
    assert share_of_differences(1000, 1, 300, 2) < 0.02
    assert share_of_differences(10, 10, 0, 2) == 0
