"""runtime/method."""
