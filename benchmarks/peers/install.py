"""The peers' environments: one per framework, in a cache folder outside the checkout, with our version of torch.

uv creates them. A framework that cannot be installed is excluded, with the reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from benchmarks.contest import Contestant
from benchmarks.workload import Workload


@dataclass(frozen=True)
class Peer:
    """The packages to install, and the supported Python versions."""

    requirements: tuple[str, ...]
    variants: Mapping[str, tuple[str, ...]]
    """Ways to run it, and the options that choose them."""
    pythons: tuple[str, ...] = ()
    """Minor versions to try, best first; empty: this Python's version."""
    patience_seconds: float = 300.0


_THREADS = {"2 threads": ("--cores", "2")}
_BLAZEFL = {"pool of 2 threads": ("--mode", "threads"), "serial, 2 threads": ("--mode", "serial")}
PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "blazefl": Peer(("blazefl", "tqdm", "numpy"), _BLAZEFL, ("3.14t", "3.14", "3.13", "3.12")),
        "fedlab": Peer(("fedlab",), _THREADS),
        "pfl": Peer(("pfl",), _THREADS),
        "fluke": Peer(("fluke-fl",), _THREADS),
        "flower": Peer(("flwr[simulation]",), {"2 actors": ("--cores", "2")}, patience_seconds=600.0),
    }
)


def cache_folder() -> Path:
    """The folder of the environments."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssfl" / "peers"


def interpreter(name: str) -> Path:
    """The path of a peer's Python; it may not exist."""
    return cache_folder() / name / "bin" / "python"


def install(name: str) -> bool:
    """Create the peer's environment if it is missing. Returns False, with the reason on stderr, if that fails."""
    if interpreter(name).exists():
        return True
    peer = PEERS[name]
    folder = cache_folder() / name
    reasons = []
    environment = dict(os.environ)
    if "PIP_FIND_LINKS" in environment:  # an option of pip that uv does not read
        environment.setdefault("UV_FIND_LINKS", environment["PIP_FIND_LINKS"].replace(" ", ","))
    pin = f"torch=={torch.__version__.partition('+')[0]}"
    for python in peer.pythons or (sys.executable,):
        make = [_uv(), "venv", "--quiet", "--no-python-downloads", "--python", python, str(folder)]
        fill = [
            _uv(),
            "pip",
            "install",
            "--quiet",
            "--python",
            str(interpreter(name)),
            *peer.requirements,
            pin,
        ]
        reason = _failure(make, environment) or _failure(fill, environment)
        if reason is None:
            return True
        shutil.rmtree(folder, ignore_errors=True)
        reasons.append(f"Python {python}: {reason}")
    print(f"{name} is excluded: it cannot be installed\n" + "\n".join(reasons), file=sys.stderr)
    return False


def _uv() -> str:
    """uv on the path, or the one that setup.sh installs beside this Python."""
    return shutil.which("uv") or str(Path(sys.executable).with_name("uv"))


def _failure(command: Sequence[str], environment: Mapping[str, str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=dict(environment), check=False)
    except FileNotFoundError:
        return f"{command[0]} is not installed"
    return None if done.returncode == 0 else done.stderr.strip()[-400:]


def peer_contestants(work: Workload, names: Sequence[str]) -> list[Contestant]:
    """The installed peers, each in all its modes; the others are named on stderr."""
    some = []
    for name in names:
        if not interpreter(name).exists():
            print(f"{name} is excluded: it is not installed (--install-peers)", file=sys.stderr)
            continue
        for variant, arguments in PEERS[name].variants.items():
            command = (str(interpreter(name)), "-m", f"benchmarks.peers.{name}", work.name, *arguments)
            patience = PEERS[name].patience_seconds
            some.append(Contestant(f"{name}, {variant}", command, patience_seconds=patience))
    return some
