"""Many runs: every combination of listed values, each run in its own process, with one table at the end."""
