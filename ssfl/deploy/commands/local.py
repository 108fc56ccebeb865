"""`ssfl deploy local`: a whole federation on this machine, with real processes, TLS and node keys on loopback."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ssfl.assemble.build import federation_of
from ssfl.config import Config, load_config
from ssfl.deploy.commands.follow import follow
from ssfl.deploy.errors import DeployError
from ssfl.deploy.federation.folders import make_federation
from ssfl.deploy.log import EventLog
from ssfl.deploy.processes.process_group import ProcessGroup, flower_environment, free_port, last_line
from ssfl.deploy.server.supervisor import Server, ServerOptions
from ssfl.deploy.settings import PREFIX, own_code, settings_of, split_words
from ssfl.deploy.site.data import data_of_client, save_npz

MOST_SITES = 100


def run_local(
    words: Sequence[str], sites: int, insecure: bool, keep: Path | None, console: str, seconds: float
) -> int:
    """Run a whole federation, from keys to summary. Returns the exit code. No process outlives it, even if killed."""
    if not 1 <= sites <= MOST_SITES:
        raise DeployError(f"--sites {sites}: must be at least 1 and at most {MOST_SITES}")
    words = list(words) or ["preset=digits"]
    words = _with_defaults(words, sites)
    own = own_code(check_words(words, sites))
    root = Path(tempfile.mkdtemp(prefix="ssfl-local-")) if keep is None else keep
    environment = flower_environment(root / "server") | (_working_directory_importable() if own else {})
    processes = ProcessGroup(environment, root if keep is None else None)
    try:
        return _run(root, processes, words, sites, insecure, console, seconds, own)
    finally:
        processes.close()
        if keep is None:
            shutil.rmtree(root, ignore_errors=True)


def check_words(words: Sequence[str], sites: int) -> Config:
    """The configuration of these words. Raises ConfigError or DeployError before anything is started."""
    run_words, ours = split_words(words)
    settings_of(ours)
    return load_config([*run_words, f"training.client_num_in_total={sites}"])


def _working_directory_importable() -> dict[str, str]:
    """Environment in which all processes import modules of the working directory, as this command does."""
    paths = [os.environ.get("PYTHONPATH", ""), os.getcwd()]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _with_defaults(words: list[str], sites: int) -> list[str]:
    """Defaults of a local federation: it waits for all sites, and its server has the data set."""
    given = {word.partition("=")[0] for word in words}
    defaults = {"sites": str(sites), "server_data": "true", "quorum": "1.0"}
    return [*words, *(f"{PREFIX}{k}={v}" for k, v in defaults.items() if f"{PREFIX}{k}" not in given)]


def _run(
    root: Path,
    processes: ProcessGroup,
    words: Sequence[str],
    sites: int,
    insecure: bool,
    console: str,
    seconds: float,
    own: Sequence[str],
) -> int:
    port = free_port()
    names = [f"site-{number}" for number in range(sites)]
    make_federation(root, names, f"127.0.0.1:{port}")
    write_partition(root, words, sites)
    options = ServerOptions(root / "server", "127.0.0.1", port, secure=not insecure)
    server = Server(options, processes, EventLog("server", options.folder / "server.jsonl", None))
    print(f"ssfl: starting a SuperLink and {sites} sites on 127.0.0.1:{port}", file=sys.stderr)
    children = [
        processes.start(
            name, [*site_words(root, name, number, insecure), *own], root / "logs" / f"{name}.log"
        )
        for number, name in enumerate(names)
    ]
    server.start()
    number = server.run({"words": shlex.join(words)})

    def check_processes(recorded: bool) -> None:
        server.check_processes()
        for name, child in zip(names, children, strict=True):
            if child.poll() is not None:
                raise DeployError(f"{name} has ended: {last_line(root / 'logs' / f'{name}.log')}")

    return follow(root / "server", number, console, check_processes, seconds)


def site_words(root: Path, name: str, number: int, insecure: bool) -> list[str]:
    """The command of one site."""
    folder = root / "sites" / name
    words = [sys.executable, "-m", "ssfl", "deploy", "site", "--folder", str(folder)]
    words += ["--data", str(folder / "data.npz"), "--client", str(number), "--device", "cpu"]
    return [*words, "--insecure"] if insecure else words


def write_partition(root: Path, words: Sequence[str], sites: int) -> None:
    """Each site's share of the configured data set as its own file, divided as a simulation divides it."""
    config = load_config([*split_words(words)[0], f"training.client_num_in_total={sites}"])
    federation = federation_of(replace(config, training=replace(config.training, client_num_in_total=sites)))
    for number in range(sites):
        save_npz(data_of_client(federation, number), root / "sites" / f"site-{number}" / "data.npz")
