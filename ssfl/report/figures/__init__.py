"""Figures of runs; the only part of the report that loads matplotlib."""
