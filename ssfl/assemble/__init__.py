"""Builds objects from the configuration and executes runs. The only package that imports all others."""

from ssfl.assemble.doctor import show_doctor
from ssfl.assemble.estimate import show_estimate
from ssfl.assemble.lifecycle import resume, run, show_partition

__all__ = ["resume", "run", "show_doctor", "show_estimate", "show_partition"]
