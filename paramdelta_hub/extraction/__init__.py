"""Extract: match base and post, encode their difference, and write a package."""
