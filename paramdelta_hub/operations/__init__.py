"""What the commands and the API call: extract, apply, verify, inspect. Each is one function that returns a report."""
