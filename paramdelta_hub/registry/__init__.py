"""Where packages are published, found and pulled: the Hub, a folder, or a bucket, by one small protocol."""
