"""Whether a model descends from another, and what that promises for a delta."""
