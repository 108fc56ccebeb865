"""The server: the registry of sites, the exchange, the run, and the supervisor of its processes."""
