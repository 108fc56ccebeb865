"""Tables of runs: single runs, means over seeds, and comparison with published numbers."""
