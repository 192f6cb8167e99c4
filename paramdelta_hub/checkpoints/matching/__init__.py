"""Which tensor of one model is which of another: by name, by role, by tie."""
