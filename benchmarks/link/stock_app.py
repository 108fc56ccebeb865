"""Stock Flower: send_and_receive, ArrayRecords of float32 tensors, a ClientApp process for every message."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

server_app = ServerApp()
client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Send the arrays back, changed."""
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    back = ArrayRecord({name: Array(array.numpy() + 1) for name, array in arrays.items()})
    return Message(RecordDict({"arrays": back}), reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Rounds of as many tensors of as many values as the run configuration says; seconds of each into a file."""
    config: dict[str, Any] = dict(context.run_config)
    sites, rounds = int(config["sites"]), int(config["rounds"])
    sizes = [int(n) for n in str(config["sizes"]).split()]
    while len(nodes := list(grid.get_node_ids())) < sites:
        time.sleep(0.5)
    seconds = []
    for turn in range(rounds + 1):
        arrays = {
            str(n): np.random.default_rng(turn).random(size, np.float32) for n, size in enumerate(sizes)
        }
        start = time.perf_counter()
        content = RecordDict()
        content["arrays"] = ArrayRecord({n: Array(a) for n, a in arrays.items()})
        content["cfg"] = ConfigRecord({"turn": turn})
        messages = [Message(content, dst_node_id=n, message_type="train") for n in nodes]
        replies = list(grid.send_and_receive(messages))
        seconds.append(time.perf_counter() - start)
        errors = [r.error.reason for r in replies if r.has_error()]
        if errors or len(replies) < sites:
            raise RuntimeError(f"{len(replies)} replies, errors: {errors}")
    payload = 4 * sum(sizes) * sites * rounds
    Path(str(config["result"])).write_text(
        json.dumps({"seconds": seconds[1:], "down": payload, "up": payload, "first": seconds[0]})
    )
    assert math.isfinite(sum(seconds))
