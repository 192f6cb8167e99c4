"""Extract: base and post paired, their difference encoded, and a package made of it."""
