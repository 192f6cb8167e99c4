"""Tokenizers, and which row of an embedding belongs to which token."""
