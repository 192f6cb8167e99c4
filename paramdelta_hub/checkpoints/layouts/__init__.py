"""The same tensors in other pieces: stacked, split, transposed; proposed from names and shapes."""
