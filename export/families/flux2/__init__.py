"""export/families/flux2."""
