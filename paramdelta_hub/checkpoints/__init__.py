"""Models as people have them: folders in Hugging Face layout, lone files, Hub ids. Headers first, weights by pread."""
