"""The Hugging Face Hub, as models and the registry both see it."""
