"""Random commands under random faults: ``python -m scripts.evidence.soak``."""
