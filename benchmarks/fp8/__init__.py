"""FP8: masks of quantised transformers compared, and a transformer's products in FP8 in PyTorch."""
