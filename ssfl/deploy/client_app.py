"""Flower's ClientApp: the same trainer inside Flower's own simulation runtime, or under a stock SuperNode.

Each message may be handled by another process, so client state is kept in files under FLWR_HOME. The data is the
partition (partition-id of num-partitions) of the run's dataset.name, or the node's own `data` path.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from ssfl.output import write_atomically

app = ClientApp()

_TRAINERS: dict[tuple[int, int], Any] = {}
"""Trainers of this process by (run, node); the files under FLWR_HOME hold the same state."""


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer one message of this project. Raises RuntimeError with the reason if the site refuses it."""
    from ssfl.deploy.transport.records import from_records, to_records

    answer = _answer(from_records(message.content), context)
    if isinstance(answer, str):
        raise RuntimeError(answer)  # Flower turns it into an error reply with this text
    content: RecordDict = to_records(answer)
    return Message(content, reply_to=message)


def _answer(message: Any, context: Context) -> Any:
    from ssfl.deploy.protocol import message_bytes, messages

    request = message_bytes.unpack(message)
    folder = _folder(context)
    key = (context.run_id, context.node_id)
    if isinstance(request, messages.Ping):
        joined = _TRAINERS[key].run if key in _TRAINERS else ""
        return message_bytes.pack(messages.Pong(joined, int(context.node_config.get("partition-id", -1))))
    if isinstance(request, messages.Join):
        _TRAINERS[key] = _trainer(request, context.node_config, folder)
        _keep(folder / "join.json", message.head)
    elif key not in _TRAINERS and (folder / "join.json").is_file():
        join = message_bytes.unpack(type(message)((folder / "join.json").read_bytes()))
        assert isinstance(join, messages.Join)
        _TRAINERS[key] = _trainer(join, context.node_config, folder)
        _TRAINERS[key].join(join)
    if key not in _TRAINERS:
        return f"this node has joined no run; {messages.JOIN_FIRST}"
    return _TRAINERS[key].handle(message)


def _folder(context: Context) -> Path:
    home = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
    return home / "ssfl" / str(context.run_id) / str(context.node_id)


def _keep(path: Path, raw: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, raw)


def _trainer(join: Any, node_config: Mapping[str, Any], folder: Path) -> Any:
    from ssfl.deploy.log import EventLog
    from ssfl.deploy.site.data import load_site_data
    from ssfl.deploy.site.sessions import SiteOptions, builder_of
    from ssfl.deploy.site.trainer import Trainer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = str(node_config.get("data", ""))
        data = load_site_data(source, join.class_names) if source else _partition(join, node_config)
    model, method = str(node_config.get("model", "")), str(node_config.get("algorithm", ""))
    options = SiteOptions(model, method, state_folder=folder, device="cpu")
    log = EventLog(f"client {join.client}", folder / "client.jsonl", None)
    return Trainer(builder_of(data, options), log, join.client, folder)


def _partition(join: Any, node_config: Mapping[str, Any]) -> Any:
    """This node's share of the run's data set, as a simulation divides it."""
    from dataclasses import replace

    from ssfl.assemble.build import federation_of
    from ssfl.config import config_from_yaml
    from ssfl.deploy.site.data import data_of_client

    config = config_from_yaml(join.config)
    total = int(node_config.get("num-partitions", 1))
    training = replace(config.training, client_num_in_total=total)
    return data_of_client(federation_of(replace(config, training=training)), join.client)
