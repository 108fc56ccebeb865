"""Runs any method of the protocol: computes, never decides; knows no method by name."""
