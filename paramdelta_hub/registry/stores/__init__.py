"""A folder or a bucket as a registry: ``ROOT/org/name/VERSION/`` is the package itself."""
