"""Scoring a dataset with a bundle, sample by sample, so that it can be resumed."""
