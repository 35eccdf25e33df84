"""runtime/diagnostics."""
