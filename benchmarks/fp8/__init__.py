"""How far FP8 moves masks, and what calibration costs."""
