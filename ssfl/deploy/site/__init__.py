"""A site: its data, its client state, its trainer, its loop."""
