"""One tensor at a time, chunk by chunk: a weighted sum with a target, a sum made 8-bit again, a difference encoded."""
