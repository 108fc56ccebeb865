"""The command line: run, resume, sweep, report, table, partition, estimate, export, keys, deploy.

Every verb imports what it needs when it is called, so that help and errors in keys appear immediately; torch is
imported only if it is needed. Exit codes: 0 done, 1 failed, 2 bad input, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssfl.cli_parser import build_parser, parse
from ssfl.errors import UserError
from ssfl.stop_signals import STOPS, StopHandler
from ssfl.sweep.launchers.lifeline import watch

if TYPE_CHECKING:
    from ssfl.config import Config

FIRST_RANK_SECONDS = 20.0
"""How long the other ranks wait so that the first one can print its error."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns its exit code; bad input gives one line on stderr and 2."""
    parser = build_parser()
    arguments = parse(parser, argv)
    if arguments.verb is None:
        parser.print_help()
        return 2
    handler = StopHandler()
    try:
        handler.install()
        watch()
        if arguments.verb != "deploy" or arguments.deploy_verb == "local":
            _import_from_here()
        return VERBS[arguments.verb](arguments)
    except KeyboardInterrupt:
        return _stopped()
    except BrokenPipeError:  # `ssfl report ... | head`
        sys.stderr.close()
        return 1
    except Exception as error:
        if handler.received:  # the interrupt stopped an import half-way, which caused another error
            return _stopped()
        if isinstance(error, OSError):
            from ssfl.output import output_error

            error = output_error(error) or error
        if not isinstance(error, UserError):
            raise
        if getattr(error, "reported_by_first_rank", False):
            return _silent_end()
        print(f"ssfl: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _stopped() -> int:
    """Print that the command was stopped. Returns exit code 130."""
    # An interrupt inside exec of a string (used to create named tuples and data classes during imports) sets a flag in
    # the interpreter, which then ends by SIGINT and ignores the exit code. Executing a string clears the flag (in
    # CPython's run_eval_code_obj).
    exec("")
    print("ssfl: stopped", file=sys.stderr)
    return 130


def _import_from_here() -> None:
    """Make modules in the working directory importable (model.name=mynet:Net), as `python -m ssfl` does.

    The directory is searched last, so that its files do not shadow libraries. Deployments between machines do not use
    it: a name that a server sends must not be resolved to a site's file.
    """
    here = os.getcwd()
    if not {"", here} & set(sys.path):
        sys.path.append(here)


def _follows_another_rank() -> bool:
    """Whether torchrun started this process as one of several ranks, but not the first."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0"


def _silent_end() -> int:
    """Wait for the first rank's error, because torchrun ends all ranks when one has ended. Returns exit code 2."""
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(FIRST_RANK_SECONDS)
    return 2


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Delays Ctrl-C while large libraries are imported, because some of their modules would ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _load(words: Sequence[str], unread: str = "") -> Config:
    """The configuration; prints its warnings, except that for `unread`, a key without a meaning for the command."""
    from ssfl.config import ConfigError, load_config

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            config = load_config(words)
        except ConfigError:
            if _follows_another_rank():  # the first rank reports the same error
                raise SystemExit(_silent_end()) from None
            raise
    for warning in () if _follows_another_rank() else caught:
        if not unread or not str(warning.message).startswith(f"{unread} has no effect"):
            print(f"ssfl: warning: {warning.message}", file=sys.stderr)
    return config


def _run(arguments: argparse.Namespace) -> int:
    config = _load(arguments.words)
    with _signals_held():
        from ssfl import assemble

    try:
        return assemble.run(config)
    except UserError:
        if config.experiment.debug_mode:
            traceback.print_exc()
        raise


def _resume(arguments: argparse.Namespace) -> int:
    from ssfl.config import ConfigError

    _need_folder(arguments.folder)
    with _signals_held():
        from ssfl import assemble

    try:
        return assemble.resume(arguments.folder, arguments.console, arguments.words)
    except ConfigError:
        if _follows_another_rank():  # the first rank reports the same error
            return _silent_end()
        raise


def _partition(arguments: argparse.Namespace) -> int:
    # A partition has no rounds, so an empty cohort (training.frac of a few clients) is allowed.
    config = _load(["training.client_num_per_round=1", *arguments.words], unread="training.frac")
    with _signals_held():
        from ssfl import assemble

    return assemble.show_partition(config, arguments.out)


def _estimate(arguments: argparse.Namespace) -> int:
    config = _load(arguments.words)
    with _signals_held():
        from ssfl import assemble

    return assemble.show_estimate(config)


def _doctor(arguments: argparse.Namespace) -> int:
    config = _load(arguments.words) if arguments.words else None
    with _signals_held():
        from ssfl import assemble

    return assemble.show_doctor(config, arguments.measure)


def _export(arguments: argparse.Namespace) -> int:
    _need_folder(arguments.folder)
    with _signals_held():
        from ssfl.assemble.portable import export_file

    print(export_file(arguments.folder, arguments.format, arguments.out, arguments.client))
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    from ssfl.config import ConfigError
    from ssfl.sweep.sweep import Placement, resume_sweep, start_sweep

    place = Placement(arguments.launcher, arguments.jobs, tuple(arguments.launcher_option))
    if arguments.resume is None:
        lines = _read_lines(arguments.lines) if arguments.lines else ()
        choose = _choice(arguments)
        return start_sweep(
            arguments.words,
            place=place,
            into=arguments.into,
            lines=lines,
            choose=choose,
            skip_finished=arguments.skip_finished,
        )
    others = (arguments.into, arguments.lines, arguments.choose, arguments.by, arguments.skip_finished)
    if arguments.words or any(others):
        raise ConfigError(
            "sweep",
            "sweep --resume DIR takes no KEY=VALUE and no --into, --lines, --choose, --by or --skip-finished: the "
            "folder contains the cells",
        )
    _need_folder(arguments.resume)
    return resume_sweep(arguments.resume, place=place)


def _choice(arguments: argparse.Namespace) -> tuple[str, str] | None:
    """Key and metric of --choose; None without it. Raises ConfigError for a metric alone."""
    from ssfl.config import ConfigError

    if arguments.choose is None and arguments.by is not None:
        raise ConfigError("--by", f"--by {arguments.by}: is the metric of --choose KEY, which is not given")
    return None if arguments.choose is None else (arguments.choose, arguments.by or "validation_accuracy")


def _read_lines(path: Path) -> list[list[str]]:
    from ssfl.config import ConfigError, parse_words

    try:
        lines = path.read_text(
            encoding="utf-8-sig"
        ).splitlines()  # an editor may have put a mark at the beginning
    except OSError as error:
        raise ConfigError("--lines", f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise ConfigError("--lines", f"{path}: is not text in UTF-8; save it as that") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            words = shlex.split(line, comments=True)
            parse_words(words)
        except ConfigError as error:
            raise ConfigError("--lines", f"{path}, line {number}: {error}") from None
        except ValueError:
            raise ConfigError("--lines", f"{path}, line {number}: a quote has no partner") from None
        found += [words] if words else []
    if not found:
        raise ConfigError("--lines", f"{path}: is empty; write KEY=VALUE settings, one product per line")
    return found


def _table(arguments: argparse.Namespace) -> int:
    _need_runs(arguments.folders)
    from ssfl.report.tables.paper_table import paper_table

    print(paper_table(arguments.folders, arguments.format, arguments.paper), end="")
    return 0


def _keys(arguments: argparse.Namespace) -> int:
    from ssfl.config.document import listing
    from ssfl.config.errors import near_match
    from ssfl.config.keys import common_keys

    found = listing(arguments.beginning)
    print(
        found or f"no key begins with {arguments.beginning}{near_match(arguments.beginning, common_keys())}"
    )
    return 0 if found else 2


def _report(arguments: argparse.Namespace) -> int:
    folders = arguments.folders
    _need_runs(folders)
    from ssfl.sweep.sweep import compare

    inside = len(folders) == 1 and folders[0].is_dir()
    out = arguments.out or (folders[0] / "report" if inside else Path("report"))
    return compare(folders, out)


def _need_runs(paths: Sequence[Path]) -> None:
    """Folders, or files of packed runs."""
    for path in paths:
        if not path.is_file():
            _need_folder(path)


def _need_folder(folder: Path) -> None:
    if not folder.is_dir():
        from ssfl.config import ConfigError

        raise ConfigError("FOLDER", f"{folder}: no such folder; run folders are in outputs/EXP_NAME/")


def _deploy(arguments: argparse.Namespace) -> int:
    from ssfl.deploy.commands.verbs import main as deploy

    return deploy(arguments)


VERBS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "resume": _resume,
    "sweep": _sweep,
    "report": _report,
    "table": _table,
    "partition": _partition,
    "estimate": _estimate,
    "export": _export,
    "keys": _keys,
    "doctor": _doctor,
    "deploy": _deploy,
}
