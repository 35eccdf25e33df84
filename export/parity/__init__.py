"""export/parity."""
