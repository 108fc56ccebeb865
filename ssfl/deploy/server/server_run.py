"""A deployed run in progress: which sites may take part, and the run's record."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ssfl.assemble.build import RunSetup
from ssfl.config import Config
from ssfl.deploy.federation.roster import Member, load_roster
from ssfl.deploy.log import MOST_DETAILS, EventLog, one_line
from ssfl.deploy.protocol import messages
from ssfl.deploy.server.exchange import QuorumError
from ssfl.deploy.server.run_record import OPEN_VARIABLE, RunRecord, Status, save_record
from ssfl.deploy.server.setup import ServerData, layout_of
from ssfl.deploy.server.site_registry import SiteRegistry
from ssfl.deploy.settings import DeploySettings
from ssfl.deploy.transport.port import ServerPort


def members_of(home: Path | None) -> tuple[Member, ...]:
    """The roster; empty if every site may take part. Raises DeployError."""
    return () if os.environ.get(OPEN_VARIABLE) else load_roster(home)


@dataclass
class ServerRun:
    """One run in progress: its sites, and its record for the supervisor and `ssfl deploy status`."""

    port: ServerPort
    config: Config
    settings: DeploySettings
    data: ServerData
    registry: SiteRegistry
    log: EventLog
    record: RunRecord
    home: Path | None
    join_config: str
    folder: Path | None = None
    started: float = field(default_factory=time.monotonic)
    setup: RunSetup | None = None
    counts: dict[int, int] = field(default_factory=dict)
    """Training examples of every client that takes part, by client."""
    late: dict[int, int] = field(default_factory=dict)
    """Client -> the number of exchanges that were done when it was added, for those that joined after the start."""
    _digests: dict[tuple[object, ...], str] = field(default_factory=dict)
    """Of the network's layout, by the shape, classes and kind of the examples."""

    # ── sites ────────────────────────────────────────────────────────────────────────────────────────────────────
    def join_of(self, client: int) -> messages.Join:
        """The Join message for a client."""
        return messages.Join(
            self.record.run, client, self.join_config, self.data.class_names, self.data.scaling
        )

    def check(self, client: int, joined: messages.Joined) -> str | None:
        """Why this site cannot take part; None if it can."""
        if joined.examples > self.settings.max_examples:
            return f"reports {joined.examples} examples; deploy.max_examples={self.settings.max_examples}"
        values, most = math.prod(joined.input_shape), self.settings.max_example_values
        if values > most:
            return f"reports examples of {values:g} values; deploy.max_example_values={most}"
        others = [s.joined for c, s in self.registry.clients.items() if c != client and s.joined is not None]
        if others and others[0].classes != joined.classes:
            return (
                f"its classes have other names, or another order, than those of client {others[0].client}, which "
                "joined first: give all sites the same --class-names"
            )
        if problem := self._inputs_problem(joined, others):
            return problem
        known = self.counts.get(client)
        if known is not None and known != joined.examples:
            return f"joined with {known} examples before, now reports {joined.examples}"
        try:
            digest = self._layout_digest(joined, others)
        except (ValueError, RuntimeError, MemoryError) as error:  # the site chooses the network's size
            reason = one_line(str(error)) or type(error).__name__
            return f"no {self.config.model.name} for its examples {list(joined.input_shape)} ({reason})"
        if digest != joined.layout:
            return f"its network has layout {joined.layout:.16}, the run's has {digest}"
        return None

    def _inputs_problem(self, joined: messages.Joined, others: Sequence[messages.Joined]) -> str:
        """What differs between this site's examples, as its network reads them, and the run's; "" if nothing."""
        unchanged = self.config.dataset.features == "unchanged"
        if unchanged and joined.inputs == "scaled":
            return (
                "its version of ssfl scales tables, the run has dataset.features=unchanged: update ssfl there"
            )
        arrays, expected = self.data.arrays, others[0].inputs if others else joined.inputs
        if arrays is not None:
            expected = messages.inputs_name(unchanged, arrays.train_x.dtype)
        kinds = {"whole": "whole numbers", "unchanged": "floats", "scaled": "scaled floats"}
        if joined.inputs != expected:
            return (
                f"its examples are {kinds[joined.inputs]}, the run's are {kinds[expected]}: "
                "all sites must store them as the same type"
            )
        return ""

    def _layout_digest(self, joined: messages.Joined, others: Sequence[messages.Joined]) -> str:
        if self.setup is not None:
            return self.setup.layout.digest.hex()
        if self.data.arrays is not None:
            shape = tuple(self.data.arrays.train_x.shape[1:])
            joined = replace(joined, input_shape=shape, num_classes=self.data.arrays.num_classes)
        elif others:
            joined = others[0]  # the first site that joined decides
        key = (joined.input_shape, joined.num_classes, joined.inputs)
        if key not in self._digests:
            self._digests[key] = layout_of(self.config, self.data, joined).digest.hex()
        return self._digests[key]

    def wait_for_sites(self, wanted: int, seconds: float) -> None:
        """Wait until `wanted` sites have joined; after `seconds`, a quorum of them is enough.

        Raises QuorumError when there is no quorum after `patience_seconds`, or when too many connected sites refuse.
        """
        end = time.monotonic() + seconds
        patience = time.monotonic() + max(seconds, self.settings.patience_seconds)
        least = self.settings.quorum_of(wanted)
        reported = -1
        while (live := self.registry.live) < wanted:
            if live != reported:
                self.log.info("waiting", f"{live} of {wanted} sites have joined", run=self.record.run)
                reported = live
            if (refusals := "; ".join(self.registry.refusals)) != self.record.reason:
                self.save_record(reason=refusals)  # `ssfl deploy status` and `run` show it
            if time.monotonic() >= end and live < least and live + len(self.registry.refusals) >= wanted:
                raise QuorumError(
                    f"{least} of {wanted} sites are needed (deploy.quorum); too many refuse: {refusals}"
                )
            if time.monotonic() >= end and live >= least:
                text = (
                    f"{live} of {wanted} sites have joined after {seconds:g} s; starting without the others"
                )
                self.log.warning("started_without", text, run=self.record.run)
                return
            if time.monotonic() >= patience:
                text = f"{live} of {wanted} sites have joined, {least} are needed (deploy.quorum)"
                raise QuorumError(f"{text}; refused: {refusals}" if refusals else text)
            self.registry.poll()
            time.sleep(0.1)

    # ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────
    def save_record(self, **changes: Any) -> None:
        """Save the run's status, for the supervisor and for `ssfl deploy status`."""
        sites = {str(c): {"examples": n, "live": not self.registry.away(c)} for c, n in self.counts.items()}
        self.record = save_record(self.home, replace(self.record, sites=sites, **changes))

    def record_end(self, status: Status, error: BaseException | None = None) -> None:
        """Save and log how the run ended."""
        reason = "" if error is None else one_line(str(error), MOST_DETAILS) or type(error).__name__
        self.save_record(status=status, reason=reason)
        if error is None:
            self.log.info("run_finished", f"{self.folder}", run=self.record.run)
        else:
            self.log.error(
                "run_stopped", f"{reason}; {self.folder or 'nothing was written'}", run=self.record.run
            )

    def counts_after(self, exchanges: int) -> dict[int, int]:
        """Training examples of the clients that may take part in the next exchange, by client."""
        return {c: n for c, n in self.counts.items() if self.late.get(c, 0) <= exchanges}

    @property
    def deployment_text(self) -> str:
        """The content of deployment.json: what a resume needs besides checkpoints."""
        deployment = {
            "run": self.record.run,
            "words": list(self.record.words),
            "counts": {str(c): n for c, n in self.counts.items()},
            "late": {str(c): n for c, n in self.late.items()},
        }
        return json.dumps(deployment, indent=2) + "\n"
