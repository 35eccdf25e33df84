"""export/checkpoint."""
