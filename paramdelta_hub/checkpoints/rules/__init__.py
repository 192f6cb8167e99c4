"""Rules of the user that change how the tensors of two models are matched."""
