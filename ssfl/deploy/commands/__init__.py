"""The verbs of `ssfl deploy`."""
