"""The command line: run, resume, sweep, report, table, partition.

Every verb imports what it needs when it is called, so that help and a mistyped key are answered at once: torch is
loaded only when there is something to compute. Exit codes: 0 done, 1 failed, 2 bad input, 130 stopped by Ctrl-C.
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

from ssfl.cli_parser import build_parser

if TYPE_CHECKING:
    from ssfl.config import Config

FIRST_RANK_SECONDS = 20.0
"""How long the other ranks give the first one for its last words."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and give its exit code; bad input becomes one line on stderr and 2."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.verb is None:
        parser.print_help()
        return 2
    stops: list[int] = []

    def stop(number: int, frame: object) -> None:
        stops.append(number)
        raise KeyboardInterrupt

    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # SIGINT too: a script's background job inherits it ignored
        signal.signal(number, stop)
    try:
        return VERBS[arguments.verb](arguments)
    except KeyboardInterrupt:
        print("ssfl: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `ssfl report ... | head`
        sys.stderr.close()
        return 1
    except Exception as error:
        if stops:  # the interrupt broke an import half-way, and something else stumbled over that
            print("ssfl: stopped", file=sys.stderr)
            return 130
        if not isinstance(error, ValueError) or not is_input_error(error):
            raise
        if getattr(error, "first_rank_says_it", False):
            return _silent_end()
        print(f"ssfl: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _follows_another_rank() -> bool:
    """Whether torchrun started this process as one of several ranks, and not as the first."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0"


def _silent_end() -> int:
    """Exit code 2, when the first rank has said why: torchrun ends all ranks, heard or unheard, when one has ended."""
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(FIRST_RANK_SECONDS)
    return 2


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Ctrl-C waits while the large libraries are imported: some of their modules would swallow it."""
    numbers = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def is_input_error(error: ValueError) -> bool:
    """Whether the user, not the program, is at fault: the package's own subclasses of ValueError.

    ConfigError, DataError, PartitionError, ModelError ... are told by their home rather than imported: importing
    them would load torch for a mistyped key.
    """
    return type(error).__module__.partition(".")[0] == "ssfl"


def _load(words: Sequence[str]) -> Config:
    from ssfl.config import ConfigError, load_config

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            config = load_config(words)
        except ConfigError:
            if _follows_another_rank():  # the first one reads the same words
                raise SystemExit(_silent_end()) from None
            raise
    for warning in () if _follows_another_rank() else caught:
        print(f"ssfl: warning: {warning.message}", file=sys.stderr)
    return config


def _run(arguments: argparse.Namespace) -> int:
    config = _load(arguments.words)
    with _signals_held():
        from ssfl import assemble

    try:
        return assemble.run(config)
    except ValueError:
        if config.experiment.debug_mode:
            traceback.print_exc()
        raise


def _resume(arguments: argparse.Namespace) -> int:
    _need_folder(arguments.folder)
    with _signals_held():
        from ssfl import assemble

    return assemble.resume(arguments.folder, arguments.console)


def _partition(arguments: argparse.Namespace) -> int:
    # A partition has no rounds: a cohort that the run's words leave empty (training.frac of a few clients) is no fault.
    config = _load(["training.client_num_per_round=1", *arguments.words])
    with _signals_held():
        from ssfl import assemble

    return assemble.show_partition(config, arguments.out)


def _sweep(arguments: argparse.Namespace) -> int:
    from ssfl.config import ConfigError
    from ssfl.sweep import Place, resume_sweep, start_sweep

    place = Place(arguments.launcher, arguments.jobs, tuple(arguments.launcher_option))
    if arguments.resume is None:
        lines = _read_lines(arguments.lines) if arguments.lines else ()
        return start_sweep(arguments.words, place=place, into=arguments.into, lines=lines)
    if arguments.words or arguments.into or arguments.lines:
        raise ConfigError("sweep", "sweep --resume DIR takes no further words: the folder knows them")
    _need_folder(arguments.resume)
    return resume_sweep(arguments.resume, place=place)


def _read_lines(path: Path) -> list[list[str]]:
    from ssfl.config import ConfigError

    try:
        lines = [shlex.split(line, comments=True) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError("--lines", f"{path}: cannot be read ({error})") from None
    found = [line for line in lines if line]
    if not found:
        raise ConfigError("--lines", f"{path}: holds no words; give KEY=VALUE words, one product a line")
    return found


def _table(arguments: argparse.Namespace) -> int:
    for folder in arguments.folders:
        _need_folder(folder)
    from ssfl.report.table import paper_table

    print(paper_table(arguments.folders, arguments.format, arguments.paper), end="")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    for folder in arguments.folders:
        _need_folder(folder)
    from ssfl.sweep import compare

    folders = arguments.folders
    out = arguments.out or (folders[0] / "report" if len(folders) == 1 else Path("report"))
    return compare(folders, out)


def _need_folder(folder: Path) -> None:
    if not folder.is_dir():
        from ssfl.config import ConfigError

        raise ConfigError("FOLDER", f"{folder}: no such folder; run folders lie under outputs/EXP_NAME/")


VERBS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "resume": _resume,
    "sweep": _sweep,
    "report": _report,
    "table": _table,
    "partition": _partition,
}
