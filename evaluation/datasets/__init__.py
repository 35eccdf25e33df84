"""Datasets: RefCOCO, parquet, JSON lines and drawn scenes, as one kind of sample."""
