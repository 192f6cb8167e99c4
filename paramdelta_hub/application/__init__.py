"""Apply: deltas fitted to a target, the sums made tensor by tensor, and a model made of them."""
