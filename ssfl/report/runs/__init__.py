"""Run folders as data, labels of runs, and grouping of runs."""

from ssfl.report.runs.run import Row, Run, RunError, find_run_folders, is_evaluated, load_run, load_runs

__all__ = ["Row", "Run", "RunError", "find_run_folders", "is_evaluated", "load_run", "load_runs"]
