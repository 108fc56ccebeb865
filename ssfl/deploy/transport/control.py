"""Client of a SuperLink's Control API: register sites; start, list and stop runs.

Sends the same requests as the command `flwr`, without its start-up time of several seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import httpx

from ssfl.deploy.errors import DeployError, UnreachableError
from ssfl.deploy.federation.keys import read_authority
from ssfl.deploy.federation.roster import read_public_key
from ssfl.deploy.transport import internals as flower

Value = str | int | float | bool


@dataclass(frozen=True)
class NodeState:
    """A registered site as the SuperLink sees it."""

    node: int
    key: str
    name: str
    online: bool


@final
class Control:
    """A SuperLink's Control API. Every method raises DeployError if the request is refused or cannot be sent.

    root_certificates: PEM file of the server's authority; None: no TLS. Raises DeployError if it is not a certificate.
    """

    def __init__(self, superlink: str, root_certificates: Path | None) -> None:
        names = flower.control_names()
        self._names = names
        self._superlink = superlink
        certificates = None if root_certificates is None else read_authority(root_certificates)
        self._client = names.ControlHttpClient.from_server_address(
            superlink,
            root_certificates is None,
            certificates,
            interceptors=[flower.RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def register(self, public_key: Path, name: str) -> None:
        """Register a site's key; does nothing if it is registered."""
        raw = flower.public_key_to_bytes(read_public_key(public_key))
        if any(node.key == hashlib.sha256(raw).hexdigest() for node in self.nodes()):
            return
        self._call("RegisterNode", self._names.RegisterNodeRequest(public_key=raw, name=name))

    def nodes(self) -> tuple[NodeState, ...]:
        """All registered sites."""
        answer = self._call("ListNodes", self._names.ListNodesRequest())
        return tuple(
            NodeState(
                int(n.node_id),
                hashlib.sha256(n.public_key).hexdigest(),
                str(n.name),
                str(n.status) == "online",
            )
            for n in answer.nodes_info
            if str(n.status) != "unregistered"
        )

    def unregister_others(self, keys: Set[str]) -> tuple[NodeState, ...]:
        """Unregister the sites with other keys than these (SHA-256, hex). Returns them."""
        others = tuple(node for node in self.nodes() if node.key not in keys)
        for other in others:
            self._call("UnregisterNode", self._names.UnregisterNodeRequest(node_id=other.node))
        return others

    def start(self, app: Path, config: Mapping[str, Value]) -> str:
        """Start a run of the app in a folder. Returns Flower's run id."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from Flower's dependencies
            raw = self._names.build_fab_from_disk(app)
        fab = self._names.Fab(hashlib.sha256(raw).hexdigest(), raw, {})
        request = self._names.StartRunRequest(
            fab=self._names.fab_to_proto(fab),
            override_config=self._names.user_config_to_proto(dict(config)),
            federation="",
        )
        answer = self._call("StartRun", request)
        if not answer.HasField("run_id"):
            raise DeployError(f"{self._superlink}: the SuperLink started no run")
        return str(answer.run_id)

    def runs(self) -> dict[str, str]:
        """Flower's run id -> status, such as running or finished:failed."""
        answer = self._call("ListRuns", self._names.ListRunsRequest())
        found = {}
        for number, run in answer.run_dict.items():
            status = run.status
            found[str(number)] = (
                f"{status.status}:{status.sub_status}" if status.sub_status else status.status
            )
        return found

    def stop(self, flower_run: str) -> None:
        """Stop a run."""
        self._call("StopRun", self._names.StopRunRequest(run_id=int(flower_run)))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def logs(self, flower_run: str, after: float = 0.0) -> Iterator[tuple[str, float]]:
        """The log of a run's ServerApp as it is written, with its time stamps, until the run ends.

        after: leave out what is not newer than this time stamp.
        """
        request = self._names.StreamLogsRequest(run_id=int(flower_run), after_timestamp=after)
        with self._errors("StreamLogs"):
            for part in self._client.StreamLogs(request):
                yield str(part.log_output), float(part.latest_timestamp)

    def _call(self, method: str, request: Any) -> Any:
        with self._errors(method):
            return getattr(self._client, method)(request)

    @contextlib.contextmanager
    def _errors(self, method: str) -> Iterator[None]:
        """Raises DeployError for the errors of a request."""
        try:
            yield
        except httpx.HTTPStatusError as error:
            cause = flower.FlowerError.from_json(error.response.text)
            reason = f"[{cause.code}] {cause.message}" if cause else f"HTTP {error.response.status_code}"
            if error.response.status_code == 403:
                reason += (
                    " (the server accepts Control API requests from its own machine only; see --control-from)"
                )
            raise DeployError(f"{self._superlink}: {method} was refused: {reason}") from None
        except httpx.HTTPError as error:
            raise UnreachableError(
                f"{self._superlink}: cannot be reached ({error or type(error).__name__})"
            ) from None
