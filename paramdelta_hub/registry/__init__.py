"""Where packages are published, found and pulled: the Hugging Face Hub, a folder, or a bucket, by one small protocol."""
