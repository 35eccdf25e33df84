"""evaluation/run."""
