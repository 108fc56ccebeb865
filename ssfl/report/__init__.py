"""Tables and figures of runs, from metrics.jsonl and config.yaml only; without torch."""
