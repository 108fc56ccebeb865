"""Data sets: files → tensors, partitions over clients, minibatches."""
