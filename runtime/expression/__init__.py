"""runtime/expression."""
