"""Apply: check that deltas fit a target, add them tensor by tensor, and write the resulting model."""
