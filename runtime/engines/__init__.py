"""runtime/engines."""
