"""Settings of a deployed run besides its configuration: `deploy.KEY=VALUE` words, validated when they are read."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

from ssfl.config import Config
from ssfl.deploy.errors import DeployError

Scoring = Literal["quorum", "all"]
ScalingSource = Literal["server", "site"]

PREFIX = "deploy."


@dataclass(frozen=True)
class DeploySettings:
    """Settings of one deployed run. Each field is a key `deploy.NAME`. Raises DeployError for a value out of range."""

    sites: int = 0
    """Number of sites that a run waits for before it starts; 0: all registered sites, or 1 if none is registered."""
    start_seconds: float = 120.0
    """How long it waits for them; then it starts with the sites that have joined, if they are a quorum."""
    quorum: float = 0.5
    """Share of the sites asked in an exchange that must answer, above 0, at most 1; never fewer than one site."""
    deadline_seconds: float = 600.0
    """How long an exchange waits for answers; also the time to live of its messages."""
    return_seconds: float = 10.0
    """How long an exchange waits for a disconnected site to reconnect once all other sites have answered."""
    patience_seconds: float = 3600.0
    """How long an exchange waits for a quorum; then the run stops and can be resumed."""
    scoring: Scoring = "quorum"
    """Scoring without some sites: quorum (continue, renormalised) or all (wait; stop after patience_seconds)."""
    scaling: ScalingSource = "server"
    """Who sets mean and deviation of the inputs: server (published values, or measured on the server's copy of
    dataset.name; each site, if the server has neither) or site (each site on its rows)."""
    server_data: bool = False
    """Whether the server loads dataset.name: to test the global model and to know classes and scaling."""
    max_examples: int = 100_000_000
    """A site that reports more training examples is refused."""
    max_example_values: int = 1_000_000
    """Most values of one example (channels × height × width, or features); a site that reports more is refused, because
    the server builds the network for the size that a site reports."""
    late_sites: bool = True
    """Whether a site that joins after the start takes part (methods with a global model)."""
    max_reply_mb: int = 0
    """Largest reply accepted, in MB of 1,000,000 bytes; 0: four dense models of 8 bytes a value."""
    checkpoint_rounds: int = 1
    """Number of exchanges between checkpoints, from which a server resumes after a crash."""
    metrics_port: int = 0
    """Loopback port of this run's Prometheus metrics; 0: none."""

    def __post_init__(self) -> None:
        for name, (low, high, above) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high or (above and value == low):
                least = f"above {low:g}" if above else f"at least {low:g}"
                raise DeployError(f"{PREFIX}{name}={value}: must be {least} and at most {high:g}")

    def quorum_of(self, sites: int) -> int:
        """How many of so many sites must answer: the quorum rounded up, at least one.

        The product is rounded to nine places first: 100 sites at 0.55 are 55, not 56 (55.000... in floating point).
        """
        return max(1, math.ceil(round(sites * self.quorum, 9)))


_RANGES: Mapping[str, tuple[float, float, bool]] = {
    "sites": (0, 1_000_000, False),
    "start_seconds": (0, 1e7, False),
    "quorum": (0, 1, True),
    "deadline_seconds": (1, 1e7, False),
    "return_seconds": (0, 1e7, False),
    "patience_seconds": (0, 1e8, False),
    "max_examples": (1, 1 << 40, False),
    "max_example_values": (1, 1 << 53, False),
    "checkpoint_rounds": (1, 1_000_000, False),
    "max_reply_mb": (0, 1_000_000, False),
    "metrics_port": (0, 65535, False),
}


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns (words of the run's configuration, words of the deployment)."""
    ours = [word for word in words if word.startswith(PREFIX)]
    return [word for word in words if not word.startswith(PREFIX)], ours


def settings_of(words: Sequence[str]) -> DeploySettings:
    """Settings from `deploy.KEY=VALUE` words; the last value of a key counts. Raises DeployError."""
    known = {f.name for f in fields(DeploySettings)}
    hints = get_type_hints(DeploySettings)
    values: dict[str, object] = {}
    for word in words:
        key, equals, text = word.removeprefix(PREFIX).partition("=")
        if not equals or key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean {PREFIX}{close[0]}?)" if close else ""
            raise DeployError(
                f"{word}: no such key{hint}; allowed: {', '.join(PREFIX + k for k in sorted(known))}"
            )
        values[key] = _value(key, text, hints[key])
    return DeploySettings(**values)  # type: ignore[arg-type]


def _value(key: str, text: str, hint: object) -> object:
    if allowed := get_args(hint):
        if text not in allowed:
            raise DeployError(f"{PREFIX}{key}={text}: must be one of {', '.join(allowed)}")
        return text
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise DeployError(f"{PREFIX}{key}={text}: must be true or false")
        return text.lower() == "true"
    try:
        return int(text) if hint is int else float(text)
    except ValueError:
        kind = "a whole number" if hint is int else "a number"
        raise DeployError(f"{PREFIX}{key}={text}: must be {kind}") from None


def own_code(config: Config) -> list[str]:
    """The sites' options that allow the network and the method of the run, where they are not of this package."""
    named = {"--model": config.model.name, "--algorithm": config.algorithm.name}
    return [word for option, name in named.items() if ":" in name for word in (option, name)]
