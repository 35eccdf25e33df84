"""IoU and boundary IoU."""
