"""What a server may not do at a site, and what of a site's errors leaves it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ssfl.config import config_to_yaml, load_config
from ssfl.deploy.log import EventLog
from ssfl.deploy.protocol import message_bytes, messages
from ssfl.deploy.site.data import load_site_data
from ssfl.deploy.site.kept_states import KeptStates, Memory
from ssfl.deploy.site.sessions import SiteOptions, builder_of
from ssfl.deploy.site.trainer import Trainer
from ssfl.deploy.transport.port import Message

WORDS = (
    "model.name=mlp",
    "training.client_num_in_total=1",
    "training.frac=1.0",
    "engine.memory_format=contiguous",
)


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    draw = np.random.default_rng(0)
    y = np.arange(12) % 2
    np.savez(tmp_path / "a.npz", train_x=draw.normal(size=(12, 4)).astype(np.float32), train_y=y)
    data = load_site_data(str(tmp_path / "a.npz"))
    options = SiteOptions(device="cpu", state_folder=tmp_path / "state")
    return Trainer(builder_of(data, options), EventLog("site", tmp_path / "site.jsonl", None), 0)


def text(*words: str) -> str:
    return config_to_yaml(load_config([*WORDS, *words]))


def join(trainer: Trainer, config: str, run: str = "run-1") -> messages.AnyMessage | str:
    answer = trainer.handle(message_bytes.pack(messages.Join(run, 0, config)))
    return answer if isinstance(answer, str) else message_bytes.unpack(answer)


def test_a_run_that_fits_is_joined(trainer: Trainer) -> None:
    joined = join(trainer, text())
    assert isinstance(joined, messages.Joined)
    assert (joined.examples, joined.test_examples, joined.num_classes, joined.input_shape) == (10, 2, 2, (4,))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("name: mlp", "name: os.path:join"), "only if the site's operator allows it"),
        (("name: mlp", "name: antigravity:Net"), "only if the site's operator allows it"),
        (("name: ssfl", "name: os.path:join"), "--algorithm os.path:join"),
        (("algorithm:", "algorithm.name: os.path:join\nalgorithm:"), "--algorithm os.path:join"),
        (("name: mlp", "name: ${oc.env:HOME}"), "contains references"),
        (("name: mlp", "name: !!python/object/apply:os.system [id]"), "is not YAML"),
        (("model:", "model: &a\n  zzz: *a\nx:"), "YAML aliases"),
        (("name: mlp", "name: resnet18"), "takes images"),
        (("comm_round: 1000", "comm_round: -1"), "training.comm_round=-1"),
        (("model:", "no_such_section:"), "no such key"),
    ],
)
def test_a_configuration_that_asks_for_more_is_refused(
    trainer: Trainer, change: tuple[str, str], reason: str
) -> None:
    answer = join(trainer, text().replace(*change, 1))
    assert isinstance(answer, str)
    assert reason in answer
    assert "\n" not in answer


def test_a_network_that_the_operator_named_is_used(trainer: Trainer, tmp_path: Path) -> None:
    config = text().replace("name: mlp", "name: tests.deploy.own_net:Net", 1)
    assert isinstance(join(trainer, config), str)
    data = load_site_data(str(tmp_path / "a.npz"))
    allowed = SiteOptions(own_model="tests.deploy.own_net:Net", device="cpu")
    own = Trainer(builder_of(data, allowed), EventLog("site", None, None), 0)
    assert isinstance(join(own, config), messages.Joined)


def test_a_module_is_not_even_imported_before_the_operator_allows_it(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module leaves a file where it is imported; the file's name stands in no other module."""
    monkeypatch.syspath_prepend(tmp_path)
    module = "from ssfl.algorithms.fedavg import METHOD\nopen(__file__ + '.imported', 'w').close()\n"
    (tmp_path / "own_method_of_a_site.py").write_text(module)
    config = f"algorithm:\n  name: own_method_of_a_site:METHOD\n{text()[text().index('model:') :]}"
    answer = join(trainer, config)
    assert isinstance(answer, str)
    assert "ssfl deploy site --algorithm own_method_of_a_site:METHOD" in answer
    assert not list(tmp_path.glob("*.imported"))
    data = load_site_data(str(tmp_path / "a.npz"))
    allowed = SiteOptions(own_method="own_method_of_a_site:METHOD", device="cpu")
    own = Trainer(builder_of(data, allowed), EventLog("site", None, None), 0)
    assert isinstance(join(own, config), messages.Joined)
    assert list(tmp_path.glob("*.imported"))


@pytest.mark.parametrize("run", ["../escape", "/etc/x", ""])
def test_a_run_cannot_name_a_folder_elsewhere(trainer: Trainer, run: str) -> None:
    answer = join(trainer, text(), run)
    assert isinstance(answer, str)
    assert "not a valid run name" in answer


def test_an_error_that_may_quote_data_stays_at_the_site(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    join(trainer, text())

    def fail(*_: object) -> None:
        raise RuntimeError("patient 4711: value 0.123")

    monkeypatch.setattr(trainer, "work", fail)
    answer = trainer.handle(message_bytes.pack(messages.Work("run-1", 0, 1, "score", 1, 3, ())))
    assert answer == "RuntimeError at the site; see the site's log"
    lines = map(json.loads, (tmp_path / "site.jsonl").read_text().splitlines())
    (line,) = (line for line in lines if line["event"] == "work_failed")
    assert "4711" in line["text"]
    assert "in fail" in line["traceback"], "the place of the fault"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"run": "other"}, "has joined run run-1; send a join first"),
        ({"client": 3}, "this site is client 0"),
        ({"phase": "__class__"}, "this method has no such phase"),
        ({"inbox": (b"garbage",)}, "too few for a message"),
        ({"holds": ("ab" * 8,)}, "lacks broadcasts: abababab"),
        ({"missed": (messages.HeldBroadcast("ab" * 8, "train", 1, (b"x",)),)}, "not a broadcast of this run"),
    ],
)
def test_work_that_does_not_fit_is_refused(trainer: Trainer, change: dict[str, object], reason: str) -> None:
    join(trainer, text())
    work = replace(messages.Work("run-1", 0, 1, "score", 1, 3, ()), **change)  # type: ignore[arg-type]
    answer = trainer.handle(message_bytes.pack(work))
    assert isinstance(answer, str)
    assert reason in answer


def test_the_end_of_a_run_that_a_site_has_left_deletes_its_state(trainer: Trainer, tmp_path: Path) -> None:
    """Not that of the run that it has joined since, nor anything outside its folder of states."""
    trainer.state = tmp_path / "state"
    for run in ("run-1", "run-2"):
        KeptStates(trainer.state, run).put(Memory(1, {"mask": torch.ones(3)}, {}))
        join(trainer, text(), run)
    (tmp_path / "other").mkdir()
    for run in ("run-1", "../other"):
        trainer.handle(message_bytes.pack(messages.Finish(run)))
    assert sorted(p.name for p in trainer.state.iterdir()) == ["run-2"]
    assert trainer.run == "run-2"
    assert (tmp_path / "other").is_dir()


def test_a_message_for_servers_is_refused(trainer: Trainer) -> None:
    assert (
        trainer.handle(message_bytes.pack(messages.Pong("", 1)))
        == "not understood: only a server accepts a Pong"
    )
    assert trainer.handle(Message(b"\x80\x04cos\nsystem")) == "not understood: the head is not JSON"
