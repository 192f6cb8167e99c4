"""Files: read by strict rules, and written so that a crash leaves nothing half-done."""
