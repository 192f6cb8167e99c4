"""What commands have made, known again by its mark: applied models, catalogs, and what ``--overwrite`` may replace."""
