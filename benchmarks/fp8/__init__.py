"""FP8: masks of quantised transformers compared."""
