"""Ranges for the FP8 exports, measured on pictures: no part of the runtime."""
