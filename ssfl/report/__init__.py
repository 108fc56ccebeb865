"""Tables and plots of runs, from metrics.jsonl and config.yaml alone; no torch.

The plots are in `ssfl.report.plots`, imported by itself because it loads matplotlib.
"""

from ssfl.report.runs import Run, RunError, find_run_folders, load_run, load_runs
from ssfl.report.summary import summary_text
from ssfl.report.tables import comparison_table, seeds_table
from ssfl.report.write import Report, write_report

__all__ = [
    "Report",
    "Run",
    "RunError",
    "comparison_table",
    "find_run_folders",
    "load_run",
    "load_runs",
    "seeds_table",
    "summary_text",
    "write_report",
]
