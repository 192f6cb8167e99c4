"""What backs the claims of the documents: trainings, long runs under faults, estimates, the demo."""
