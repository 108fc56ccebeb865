"""Tables and plots of runs, from metrics.jsonl and config.yaml alone; no torch."""

from ssfl.report.runs import Run, RunError, find_run_folders, load_run, load_runs

__all__ = ["Run", "RunError", "find_run_folders", "load_run", "load_runs"]
