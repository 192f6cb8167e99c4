"""Whether deltas transfer, on small trainings: ``python -m scripts.evidence.reproduce``."""
