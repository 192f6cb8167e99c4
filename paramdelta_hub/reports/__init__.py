"""What a delta looks like: what is measured in its weights, the charts, and the pages that show them."""
