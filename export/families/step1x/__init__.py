"""export/families/step1x."""
