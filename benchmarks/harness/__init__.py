"""What every benchmark uses: rows, plots, peaks of memory, checks."""
