"""What makes the repository's generated files and models."""
