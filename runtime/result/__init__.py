"""runtime/result."""
