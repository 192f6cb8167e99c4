"""Model checkpoints: folders in Hugging Face layout, single files, and Hub ids. Only headers are read on opening."""
