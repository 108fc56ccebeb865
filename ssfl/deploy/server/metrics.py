"""Prometheus metrics of one deployed run; prometheus-client is imported only if a port is set."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, final

from ssfl.deploy.log import EventLog

ADDRESS = "127.0.0.1"


@final
class Metrics:
    """An observer of the run's events (docs/metrics.md) that serves their sums over HTTP on loopback.

    port 0: the observer does nothing.
    """

    def __init__(self, port: int, run: str, log: EventLog) -> None:
        self._server: Any = None
        if not port:
            return
        from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

        registry = CollectorRegistry()
        self._run = run

        def by_phase(name: str, text: str) -> Any:
            return Counter(name, f"{text}, by phase", ("run", "phase"), registry=registry)

        self._rounds = by_phase("ssfl_exchanges", "exchanges done")
        self._seconds = by_phase("ssfl_exchange_seconds", "wall seconds of exchanges")
        self._down = by_phase("ssfl_downlink_bytes", "payload bytes sent to sites")
        self._up = by_phase("ssfl_uplink_bytes", "payload bytes received from sites")
        self._missing = by_phase("ssfl_missing_replies", "missing replies")
        self._round = Gauge("ssfl_round", "last finished training round", ("run",), registry=registry)
        self._live = Gauge("ssfl_live_sites", "joined sites that are connected", ("run",), registry=registry)
        self._saved = Gauge(
            "ssfl_last_checkpoint_timestamp_seconds",
            "Unix time of the last checkpoint",
            ("run",),
            registry=registry,
        )
        try:
            self._server, self._thread = start_http_server(port, ADDRESS, registry)
        except OSError as error:
            log.warning(
                "no_metrics", f"port {port}: {error.strerror}; the run continues without metrics", run=run
            )

    def record(self, event: Mapping[str, Any]) -> None:
        """Count one event."""
        if self._server is None or event["event"] not in ("round", "phase"):
            return
        labels = (self._run, event["phase"])
        self._rounds.labels(*labels).inc()
        self._seconds.labels(*labels).inc(event["wall_seconds"])
        self._down.labels(*labels).inc(event["downlink_bytes"])
        self._up.labels(*labels).inc(event["uplink_bytes"])
        self._missing.labels(*labels).inc(len(event.get("missing_clients", ())))
        self._round.labels(self._run).set(event["round"])

    def live(self, sites: int) -> None:
        """Set the number of connected sites."""
        if self._server is not None:
            self._live.labels(self._run).set(sites)

    def saved(self) -> None:
        """Record that a checkpoint has been saved now."""
        if self._server is not None:
            self._saved.labels(self._run).set(time.time())

    def close(self) -> None:
        """Stop the HTTP server and free the port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
