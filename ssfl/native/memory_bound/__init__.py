"""Memory-bound kernels for batches of images, channels and vectors: each value is read once and written once."""
