"""Data sets: files → tensors, who owns which row, minibatches."""
