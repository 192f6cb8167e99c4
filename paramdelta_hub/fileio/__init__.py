"""Files: read without surprises, written so that a crash leaves nothing half-done; names, JSON and headers by strict rules."""
