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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssfl import __version__

if TYPE_CHECKING:
    from ssfl.config import Config

CONSOLES = ("auto", "rich", "plain", "quiet", "json")
LAUNCHERS = ("local", "submitit", "ray")
TABLE_FORMATS = ("text", "markdown", "csv", "latex")

EXAMPLES = """\
examples:
  ssfl run preset=digits                                a whole run on embedded data, under a minute
  ssfl run model.dense_ratio=0.3 training.frac=0.1      the paper's CIFAR-10 recipe, two keys changed
  ssfl run preset=digits algorithm=fedavg               another method
  ssfl run preset=digits algorithm.params.mode=random_global
  ssfl sweep preset=digits algorithm=ssfl,fedavg model.dense_ratio=0.5,0.1
  ssfl sweep --jobs 2 --into outputs/mine preset=digits algorithm=ssfl,dispfl experiment.seed=1,2,3
  ssfl report outputs/digits/*                          table and plots of finished runs
  ssfl table outputs/mine                               mean and spread over seeds, the paper's numbers beside
  ssfl resume outputs/digits/TIME                       go on after a crash or Ctrl-C
  ssfl partition preset=digits dataset.partition_alpha=0.1

All keys: conf/base.yaml and docs/configuration.md. `python main.py ...` is the same as `ssfl run ...`.
"""

FIRST_RANK_SECONDS = 20.0
"""How long the other ranks give the first one for its last words."""
_WORDS = "KEY=VALUE or GROUP=NAME, in Hydra's grammar; groups: algorithm, algorithm/mode, preset"


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
        return int(arguments.call(arguments))
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


def build_parser() -> argparse.ArgumentParser:
    """The verbs and their options; `call` on the result is the verb's function."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "ssfl", description="Salient sparse federated learning.", epilog=EXAMPLES, formatter_class=shape
    )
    parser.add_argument("--version", action="version", version=f"ssfl {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="{run,resume,sweep,report,table,partition}")

    run = verbs.add_parser("run", help="train once", epilog=EXAMPLES, formatter_class=shape)
    run.add_argument("words", nargs="*", metavar="KEY=VALUE", help=_WORDS)
    run.set_defaults(call=_run)

    resume = verbs.add_parser("resume", help="go on with a run that was stopped")
    resume.add_argument("folder", type=Path, help="run folder, such as outputs/ssfl/TIME")
    resume.add_argument("--console", choices=CONSOLES, help="how to show progress from here on")
    resume.set_defaults(call=_resume)

    sweep = verbs.add_parser(
        "sweep", help="train every combination of listed values", epilog=EXAMPLES, formatter_class=shape
    )
    sweep.add_argument(
        "words", nargs="*", metavar="KEY=A,B", help=f"{_WORDS}; lists a,b and range(1,4) multiply"
    )
    _add_sweep_options(sweep)
    sweep.set_defaults(call=_sweep)

    report = verbs.add_parser("report", help="table and plots of runs")
    report.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="run folders, or folders above them"
    )
    report.add_argument(
        "--out", type=Path, help="where to write (default: FOLDER/report, or ./report for several)"
    )
    report.set_defaults(call=_report)

    table = verbs.add_parser("table", help="mean and spread over seeds, the paper's numbers beside ours")
    table.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="sweep or run folders, or above"
    )
    table.add_argument("--format", choices=TABLE_FORMATS, default="text", help="default: %(default)s")
    table.add_argument(
        "--paper", metavar="TABLE", help="published table, or none (default: from dataset and split)"
    )
    table.set_defaults(call=_table)

    partition = verbs.add_parser("partition", help="show which client owns what")
    partition.add_argument("words", nargs="*", metavar="KEY=VALUE", help=_WORDS)
    partition.add_argument(
        "--out", type=Path, help="picture of the client x class table (.png, .svg or .pdf)"
    )
    partition.set_defaults(call=_partition)
    return parser


def _add_sweep_options(sweep: argparse.ArgumentParser) -> None:
    sweep.add_argument(
        "--into", type=Path, metavar="DIR", help="begin this folder, or go on where it was left"
    )
    sweep.add_argument("--resume", type=Path, metavar="DIR", help="go on with this sweep folder")
    sweep.add_argument(
        "--lines", type=Path, metavar="FILE", help="words to add, one product a line (# starts a remark)"
    )
    sweep.add_argument(
        "--jobs", type=_count, metavar="N", help="cells at a time (default: 1; on a cluster all at once)"
    )
    sweep.add_argument(
        "--launcher", choices=LAUNCHERS, default="local", help="submitit: Slurm; default: local"
    )
    sweep.add_argument(
        "--launcher-option", action="append", default=[], metavar="KEY=VALUE", help="such as timeout_min=240"
    )


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: allowed: a whole number from 1")
    return int(text)


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
