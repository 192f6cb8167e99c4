"""LoRA adapters as post: reading their files, placing them in base's names, and base with the product added."""
