"""The method: propagation, thresholding, classification, upsampling, in NumPy and in CUDA."""
