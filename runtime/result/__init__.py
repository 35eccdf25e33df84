"""The result of a segmentation, and how it is drawn and encoded."""
