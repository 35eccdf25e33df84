"""runtime/image."""
