"""Scoring: datasets, metrics, reports and ablations of referring segmentation."""
