"""The routes, one concept per file."""
