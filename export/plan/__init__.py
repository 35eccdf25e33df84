"""export/plan."""
