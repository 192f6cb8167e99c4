"""Files: strict reading of names, JSON and headers, and writing that survives a crash."""
