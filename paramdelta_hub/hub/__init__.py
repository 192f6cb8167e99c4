"""The client of the Hugging Face Hub, used for models and for the registry."""
