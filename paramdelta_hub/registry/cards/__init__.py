"""Model cards: their text, tables, pictures and tags."""
