"""The command line: verbs, options, help. `cli.py` implements the verbs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias, final

from ssfl import __version__
from ssfl.deploy.parser import add_deploy
from ssfl.sweep.launchers.launcher import LAUNCHERS

CONSOLES = ("auto", "rich", "plain", "quiet", "json")
EXPORT_FORMATS = ("pt2", "onnx", "safetensors")
TABLE_FORMATS = ("text", "markdown", "csv", "latex")

EXAMPLES = """\
examples:
  ssfl run preset=digits                                a complete run on embedded data, under a minute
  ssfl run model.dense_ratio=0.3 training.frac=0.1      the paper's CIFAR-10 recipe with two keys changed
  ssfl run preset=digits algorithm=fedavg               another method
  ssfl run preset=digits algorithm.params.mode=random_global
  ssfl sweep preset=digits algorithm=ssfl,fedavg model.dense_ratio=0.5,0.1
  ssfl sweep --jobs 2 --into outputs/mine preset=digits algorithm=ssfl,dispfl experiment.seed=1,2,3
  ssfl report outputs/digits/*                          table and plots of finished runs
  ssfl table outputs/mine                               mean and spread over seeds, beside the paper's numbers
  ssfl resume outputs/digits/TIME                       continue after a crash or Ctrl-C
  ssfl resume outputs/digits/TIME training.comm_round=80   train longer, also after the end
  ssfl export outputs/digits/TIME --format onnx         the trained network for other programs
  ssfl partition preset=digits dataset.partition_alpha=0.1

All keys: ssfl keys, conf/base.yaml and docs/configuration.md. `python main.py ...` is the same as `ssfl run ...`.
"""

_WORDS = "KEY=VALUE or GROUP=NAME, in Hydra's grammar; groups: algorithm, algorithm/mode, preset"


_SHAPE = argparse.RawDescriptionHelpFormatter
_Verbs: TypeAlias = "argparse._SubParsersAction[_Parser]"


@final
class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and exit code 2; a setting with dashes in front is a likely mistake."""
        dashes = re.search(r"unrecognized arguments:.* --[\w.]+[./]", message)
        remedy = "settings are KEY=VALUE, without dashes" if dashes else f"see {self.prog} --help"
        self.exit(2, f"ssfl: {message}; {remedy}\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser; `verb` in its result is the verb that was given, or None."""
    parser = _Parser(
        "ssfl", description="Salient sparse federated learning.", epilog=EXAMPLES, formatter_class=_SHAPE
    )
    parser.add_argument("--version", action="version", version=f"ssfl {__version__}")
    verbs = parser.add_subparsers(
        dest="verb", metavar="{run,resume,sweep,report,table,partition,estimate,export,keys,doctor,deploy}"
    )
    _add_training(verbs)
    _add_reading(verbs)
    _add_planning(verbs)
    add_deploy(verbs)
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; settings may also stand after options. Bad input gives one line and exit code 2."""
    found, rest = parser.parse_known_args(argv)
    settings = all("=" in word and not word.startswith("-") for word in rest)
    if rest and settings and hasattr(found, "words"):
        found.words = [*found.words, *rest]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return found


def _add_training(verbs: _Verbs) -> None:
    run = verbs.add_parser("run", help="train one run", epilog=EXAMPLES, formatter_class=_SHAPE)
    run.add_argument("words", nargs="*", metavar="KEY=VALUE", help=_WORDS)
    resume = verbs.add_parser("resume", help="continue a run that was stopped, or train longer")
    resume.add_argument("folder", type=Path, help="run folder, such as outputs/ssfl/TIME")
    resume.add_argument(
        "words",
        nargs="*",
        default=[],
        metavar="training.comm_round=N",
        help="train to N rounds, also after the end",
    )
    resume.add_argument("--console", choices=CONSOLES, help="how to show progress")
    sweep = verbs.add_parser(
        "sweep", help="train every combination of listed values", epilog=EXAMPLES, formatter_class=_SHAPE
    )
    sweep.add_argument(
        "words", nargs="*", metavar="KEY=A,B", help=f"{_WORDS}; all combinations of lists a,b and range(1,4)"
    )
    _add_sweep_options(sweep)


def _add_reading(verbs: _Verbs) -> None:
    """Verbs that read finished runs."""
    report = verbs.add_parser("report", help="write a table and plots of runs")
    report.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="run folders, folders above them, or packed runs (runs.json)",
    )
    report.add_argument(
        "--out", type=Path, help="output folder (default: FOLDER/report; ./report for several or a file)"
    )
    table = verbs.add_parser("table", help="print means and spreads over seeds, beside the paper's numbers")
    table.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="sweep or run folders, folders above them, or packed runs (runs.json)",
    )
    table.add_argument("--format", choices=TABLE_FORMATS, default="text", help="default: %(default)s")
    table.add_argument(
        "--paper",
        metavar="TABLE",
        help="published table to compare with, or none (default: from data set and split)",
    )
    _add_export(verbs.add_parser("export", help="write a finished run's network with its preprocessing"))


def _add_planning(verbs: _Verbs) -> None:
    """Verbs that show what a run would do, without training."""
    partition = verbs.add_parser("partition", help="show which client owns which examples")
    partition.add_argument("words", nargs="*", metavar="KEY=VALUE", help=_WORDS)
    partition.add_argument(
        "--out", type=Path, help="write a picture of the client x class table (.png, .svg or .pdf)"
    )
    estimate = verbs.add_parser(
        "estimate", help="show what a run would send, for every communication profile"
    )
    estimate.add_argument("words", nargs="*", metavar="KEY=VALUE", help=_WORDS)
    keys = verbs.add_parser("keys", help="list the configuration keys with defaults and meanings")
    keys.add_argument(
        "beginning",
        nargs="?",
        default="",
        help="only keys with this prefix, such as engine., or those of a custom method, package.module:CLASS",
    )
    doctor = verbs.add_parser("doctor", help="show what this machine has and how it would compute a run")
    doctor.add_argument("words", nargs="*", metavar="KEY=VALUE", help=f"a run; {_WORDS}")
    doctor.add_argument(
        "--measure",
        action="store_true",
        help="discard this machine's measurements, and measure the run again",
    )


def _add_export(export: argparse.ArgumentParser) -> None:
    export.add_argument("folder", type=Path, help="folder of a finished run")
    export.add_argument(
        "--format",
        choices=EXPORT_FORMATS,
        help="pt2: torch.export; onnx: needs the extra onnx; safetensors: weights, preprocessing as metadata; default: "
        "by the end of --out, else pt2",
    )
    export.add_argument("--out", type=Path, metavar="FILE", help="default: FOLDER/model_exported.FORMAT")
    export.add_argument(
        "--client", type=int, metavar="K", help="the network of client K, if the method keeps one per client"
    )


def _add_sweep_options(sweep: argparse.ArgumentParser) -> None:
    sweep.add_argument(
        "--into",
        type=Path,
        metavar="DIR",
        help="folder of the sweep; an existing sweep with the same arguments is continued",
    )
    sweep.add_argument("--resume", type=Path, metavar="DIR", help="continue this sweep folder")
    sweep.add_argument(
        "--lines",
        type=Path,
        metavar="FILE",
        help="file with settings to add, one product per line (# starts a comment)",
    )
    sweep.add_argument(
        "--skip-finished",
        type=Path,
        metavar="PATH",
        help="leave out runs that have finished in this folder or packed file (runs.json)",
    )
    sweep.add_argument(
        "--choose",
        metavar="KEY",
        help="find the best of this key's listed values for every setting, and write a record",
    )
    sweep.add_argument(
        "--by",
        metavar="METRIC",
        help="metric of --choose, on held-out rows: validation_accuracy (default) or client_validation_accuracy; "
        "with tracking.metrics=imbalanced also validation_auc, validation_balanced_accuracy",
    )
    sweep.add_argument(
        "--jobs", type=_count, metavar="N", help="number of runs at a time (default: 1; on a cluster: all)"
    )
    sweep.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        default="local",
        help="where runs execute (submitit: Slurm; default: local)",
    )
    sweep.add_argument(
        "--launcher-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="launcher option, such as timeout_min=240",
    )


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least 1")
    return int(text)
