"""Model cards, the pictures and tables in them, and the words by which deltas are found."""
