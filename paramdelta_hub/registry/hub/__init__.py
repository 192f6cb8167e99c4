"""The Hugging Face Hub as a registry: fetching, publishing by one atomic commit, and links on model cards."""
