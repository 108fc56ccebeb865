"""`ssfl deploy site`: one process that holds a site's data, network and state, and answers the server."""

from __future__ import annotations

import argparse
import signal
import threading
import warnings
from pathlib import Path

from ssfl.deploy.errors import DeployError
from ssfl.deploy.federation.addresses import is_loopback, split_address
from ssfl.deploy.federation.folders import read_site_folder
from ssfl.deploy.log import EventLog
from ssfl.deploy.processes.locks import one_site_process
from ssfl.deploy.site.data import SiteData, load_site_data
from ssfl.deploy.site.loop import serve
from ssfl.deploy.site.sessions import SiteOptions, builder_of
from ssfl.deploy.site.trainer import Trainer
from ssfl.deploy.transport.fleet import Credentials, FleetPort

SHOWN_CLASSES = 20


def run_site(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; with --check, only read the data. Returns the exit code.

    Raises DeployError or DataError before connecting.
    """
    if arguments.device == "cuda":
        _check_cuda()
    if arguments.check:
        _load(arguments, EventLog("site"))
        return 0
    credentials, name = credentials_of(arguments)
    state = state_folder(arguments)
    with one_site_process(state, credentials.private_key):
        return _serve(arguments, credentials, name, state)


def _serve(arguments: argparse.Namespace, credentials: Credentials, name: str, state: Path | None) -> int:
    log = EventLog(name, None if state is None else state / "site.jsonl")
    data = _load(arguments, log)
    options = SiteOptions(
        own_model=arguments.model,
        own_method=arguments.algorithm,
        threads=arguments.threads,
        device=arguments.device,
        state_folder=state,
    )
    trainer = Trainer(builder_of(data, options), log, arguments.client, state)
    stop = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        stop.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    if arguments.stock_supernode:
        from ssfl.deploy.transport.stock import serve_stock

        return serve_stock(arguments.stock_supernode, arguments.stock_secret, trainer.handle, log, stop)
    port = FleetPort(credentials, None if state is None else state / "node")
    try:
        patience = arguments.give_up_seconds or None
        ended = serve(port, trainer.handle, log, stop, arguments.max_message_mb * 1_000_000, patience)
        return 0 if ended else 1
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # closing the connection must not be interrupted
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        port.close()
        log.info("left")


def credentials_of(arguments: argparse.Namespace) -> tuple[Credentials, str]:
    """Returns the site's credentials and its name. Raises DeployError."""
    if arguments.folder is None:
        if not arguments.superlink or not arguments.insecure:
            raise DeployError(
                "give --folder, the site's folder from `ssfl deploy init` (or --superlink with --insecure)"
            )
        return _insecure(arguments.superlink), "site"
    site = read_site_folder(arguments.folder)
    superlink = arguments.superlink or site.superlink
    split_address(superlink)
    if arguments.insecure:
        return _insecure(superlink), site.name
    if site.root_certificates is None:
        raise DeployError(
            f"{arguments.folder}: ca.crt is missing; without it the server's identity cannot be verified"
        )
    return Credentials(superlink, site.root_certificates, site.private_key), site.name


def _insecure(superlink: str) -> Credentials:
    if not is_loopback(superlink):
        raise DeployError(f"--insecure --superlink {superlink}: without TLS the server must be on loopback")
    return Credentials(superlink)


def state_folder(arguments: argparse.Namespace) -> Path | None:
    """The folder of the site's state, created if it does not exist; None without one. Raises DeployError."""
    folder = arguments.state or (None if arguments.folder is None else arguments.folder / "state")
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        reason = "a file exists where a folder is needed" if folder.exists() else error.strerror
        raise DeployError(f"--state {folder}: {reason}; give another folder") from None
    return Path(folder)


def _load(arguments: argparse.Namespace, log: EventLog) -> SiteData:
    """The site's data, with its sizes in the log. Raises DataError."""
    names = [name for name in arguments.class_names.split(",") if name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load_site_data(arguments.data, names, arguments.test)
    for warning in caught:
        log.warning("data", str(warning.message))
    classes = data.arrays.class_names
    text = f"{data.examples} examples, {data.test_examples} to test on, each {list(data.input_shape)}"
    log.info("data", f"{text}; {len(classes)} classes: {', '.join(classes[:SHOWN_CLASSES])}")
    return data


def _check_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise DeployError("--device cuda: PyTorch finds no CUDA device on this machine; use cpu or auto")
