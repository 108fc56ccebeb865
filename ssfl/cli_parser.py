"""The words of the command line: verbs, options, help. What the verbs do is `cli.py`'s."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssfl import __version__

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

_WORDS = "KEY=VALUE or GROUP=NAME, in Hydra's grammar; groups: algorithm, algorithm/mode, preset"


def build_parser() -> argparse.ArgumentParser:
    """The verbs and their options; `verb` on the result names the one that was asked for, or is None."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "ssfl", description="Salient sparse federated learning.", epilog=EXAMPLES, formatter_class=shape
    )
    parser.add_argument("--version", action="version", version=f"ssfl {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="{run,resume,sweep,report,table,partition}")

    run = verbs.add_parser("run", help="train once", epilog=EXAMPLES, formatter_class=shape)
    run.add_argument("words", nargs="*", metavar="KEY=VALUE", help=_WORDS)

    resume = verbs.add_parser("resume", help="go on with a run that was stopped")
    resume.add_argument("folder", type=Path, help="run folder, such as outputs/ssfl/TIME")
    resume.add_argument("--console", choices=CONSOLES, help="how to show progress from here on")

    sweep = verbs.add_parser(
        "sweep", help="train every combination of listed values", epilog=EXAMPLES, formatter_class=shape
    )
    sweep.add_argument(
        "words", nargs="*", metavar="KEY=A,B", help=f"{_WORDS}; lists a,b and range(1,4) multiply"
    )
    _add_sweep_options(sweep)

    report = verbs.add_parser("report", help="table and plots of runs")
    report.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="run folders, or folders above them"
    )
    report.add_argument(
        "--out", type=Path, help="where to write (default: FOLDER/report, or ./report for several)"
    )

    table = verbs.add_parser("table", help="mean and spread over seeds, the paper's numbers beside ours")
    table.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="sweep or run folders, or above"
    )
    table.add_argument("--format", choices=TABLE_FORMATS, default="text", help="default: %(default)s")
    table.add_argument(
        "--paper", metavar="TABLE", help="published table, or none (default: from dataset and split)"
    )

    partition = verbs.add_parser("partition", help="show which client owns what")
    partition.add_argument("words", nargs="*", metavar="KEY=VALUE", help=_WORDS)
    partition.add_argument(
        "--out", type=Path, help="picture of the client x class table (.png, .svg or .pdf)"
    )
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
