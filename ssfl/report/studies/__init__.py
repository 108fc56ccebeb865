"""Studies: flatness of curves, differences paired by seed, choice of settings by validation, pages of results."""
