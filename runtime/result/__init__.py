"""What a segmentation returns: the mask, and how it is drawn and encoded."""
