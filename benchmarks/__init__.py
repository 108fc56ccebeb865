"""Speed and memory of ssfl, measured beside plain PyTorch and other frameworks: see README.md in this folder."""
