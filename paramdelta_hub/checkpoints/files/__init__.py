"""The files of a model: where they are, and which of them belong to it."""
