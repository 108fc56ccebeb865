"""Speed and memory of ssfl, compared with plain PyTorch and other frameworks: see README.md in this folder."""
