"""What develops, measures and demonstrates the package; run from the repository: ``python -m scripts.weights``."""
