"""What every scenario uses: timing, memory, rows, comparison with the baseline, other processes."""
