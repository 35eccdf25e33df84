"""evaluation/datasets."""
