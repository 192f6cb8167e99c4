"""Reports about deltas: measurements of their weights, charts, and HTML pages."""
