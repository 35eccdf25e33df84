"""Scores as a table, JSON and a page, beside the published ones."""
