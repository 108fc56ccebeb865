"""Runs any method: the computation, without code for a particular method."""
