"""Configuration -> objects -> a run. The only room that knows every other."""

from ssfl.assemble.lifecycle import resume, run, show_partition

__all__ = ["resume", "run", "show_partition"]
