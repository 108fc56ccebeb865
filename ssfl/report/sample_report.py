"""A report of invented runs: `python -m ssfl.report.sample_report [FOLDER]` shows all tables and figures."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from ssfl.report.runs.sample import write_sample_run
from ssfl.report.write import write_report


def main(folder: Path) -> None:
    """Write tables and figures of ten invented runs to `folder`."""
    with tempfile.TemporaryDirectory() as scratch:
        for density in (0.5, 0.2, 0.05):
            for seed in (0, 1, 2):
                stop = 20 if (density, seed) == (0.05, 2) else None
                place = Path(scratch) / f"ssfl-{density}-{seed}"
                write_sample_run(place, density=density, seed=seed, stop_after=stop)
        write_sample_run(Path(scratch) / "fedavg", algorithm="fedavg")
        print(write_report([Path(scratch)], folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("outputs/sample-report"))
