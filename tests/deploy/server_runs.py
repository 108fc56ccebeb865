"""Whole runs on the server for tests: a fleet with shares of the digits, words, results, a crash."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ssfl.assemble.build import federation_of
from ssfl.config import load_config
from ssfl.deploy.log import EventLog
from ssfl.deploy.protocol import message_bytes, messages
from ssfl.deploy.site.data import data_of_client
from ssfl.deploy.site.sessions import SiteOptions, builder_of
from ssfl.deploy.site.trainer import Trainer
from ssfl.deploy.transport.port import Message
from tests.deploy.fake_fleet import FakeFleet, FakeSite, Fault
from tests.deploy.oracle import BITS

SITES = 3

WORDS = ("preset=digits", "training.frac=1.0", "training.epochs=1", "training.comm_round=4", *BITS)

DEPLOY = (
    f"deploy.sites={SITES}",
    "deploy.server_data=true",
    "deploy.start_seconds=0.5",
    "tracking.console=quiet",
)


def fleet_of(folder: Path, words: tuple[str, ...] = WORDS, sites: int = SITES) -> FakeFleet:
    """Sites with shares of the digits, memories below `folder`."""
    config = load_config([*words, f"training.client_num_in_total={sites}"])
    federation = federation_of(replace(config, training=replace(config.training, client_num_in_total=sites)))
    fleet = FakeFleet()
    for client in range(sites):
        options = SiteOptions(config.model.name, device="cpu", state_folder=folder / f"site-{client}")
        build = builder_of(data_of_client(federation, client), options)
        trainer = Trainer(build, EventLog(f"site-{client}", None, None), client)
        fleet.sites_by_node[100 + client] = FakeSite(trainer, f"key-{client}")
    return fleet


def words_in(tmp_path: Path, *more: str) -> list[str]:
    return [*WORDS, *DEPLOY, f"experiment.output_dir={tmp_path / 'outputs'}", *more]


def model(folder: Path) -> Tensor:
    tensors = load_file(folder / "model.safetensors")
    return torch.cat([tensors[name].reshape(-1) for name in sorted(tensors)])


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Crash(BaseException):
    """What a kill -9 looks like to the code: no handler runs."""


def crash_at(fleet: FakeFleet, round_: int) -> None:
    """The server dies when it has sent that round's work, before any answer."""
    send = fleet.send

    def dying(outgoing: Any, deadline_seconds: float) -> Any:
        tickets = send(outgoing, deadline_seconds)
        for _, message in outgoing:
            work = message_bytes.unpack(message)
            if isinstance(work, messages.Work) and work.phase == "train" and work.round == round_:
                for node, m in outgoing:  # the sites do the work all the same
                    fleet.sites_by_node[node].trainer.handle(m)
                raise Crash
        return tickets

    fleet.send = dying  # type: ignore[method-assign]


def answering(**changes: object) -> Fault:
    """A site with other fields in its Joined; None: without the field."""

    def fault(message: Message, answer: Message | str) -> Message | str:
        assert isinstance(answer, Message)
        head = json.loads(answer.head)
        if head["kind"] != "joined":
            return answer
        return Message(json.dumps({k: v for k, v in (head | changes).items() if v is not None}).encode())

    return fault
